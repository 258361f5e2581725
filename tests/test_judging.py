"""Training with a judge that fails: what is asked again, what is given up, and that nothing is trained on the rest."""

import os
import signal
import socket
from concurrent.futures import Future
from functools import partial

import pytest
from conftest import assert_same_run, flags, lines_of, without_costs
from judging import FakeJudge, running, share_of, some_fail

import rl.judging.judge
import rl.judging.waiting
import rl.rollout
import train
from rewards.http_judge import HttpJudge
from rewards.judge import NAMED_JUDGES, Judgement, JudgeUnavailable, RuleScorer, StoppedWhileWaiting
from rewards.refinements import changes_nothing
from rl.judging.waiting import PendingScores
from rl.metrics import variance_share
from rl.run.checkpoint import complete_checkpoints
from rl.run.console import StopSignals, sleep_unless_stopped


class FailingScorer(RuleScorer):
    """Scores by rule, but fails whenever `fails(call)` says so; calls are counted from 1."""

    may_recover = True

    def __init__(self, fails) -> None:
        super().__init__()
        self.fails, self.calls = fails, 0

    def submit(self, item: Judgement) -> Future:
        self.calls += 1
        future = super().submit(item)
        if self.fails(self.calls):
            future = Future()
            future.set_result(None)
        return future


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(rl.judging.waiting, "sleep_unless_stopped", made.append)
    return made


def pending_scores(scorer: RuleScorer, patience: float = 60) -> PendingScores:
    """Twenty answers, every second one right, submitted under their numbers."""
    pending = PendingScores(scorer, max_failures=0.05, patience=patience)
    for n in range(20):
        pending.submit(n, Judgement("q", str(n % 2), "1"))
    return pending


@pytest.mark.parametrize(
    ("fails", "missing", "waits", "calls"),
    [
        (lambda call: call == 3, {2}, [], 20),  # one in twenty is left out
        (lambda call: call <= 10 or 20 < call <= 25, set(), [5, 10], 20 + 10 + 5),
    ],
)
def test_many_missing_scores_are_asked_for_again_and_few_left_out(pauses, fails, missing, waits, calls):
    """Bug guarded: a time-out that stops a run; scores of the second round given to other answers, answered ones paid twice."""
    scorer = FailingScorer(fails)
    assert pending_scores(scorer).collect() == {n: None if n in missing else float(n % 2) for n in range(20)}
    assert (pauses, scorer.calls) == (waits, calls)


@pytest.mark.parametrize(
    ("may_recover", "message", "waits"),
    [(True, "20 of 20 scores are missing .* after 60 s", [5, 10, 20, 25]), (False, "missing .a reason.* would not help", [])],
)
def test_a_judge_that_stays_away_is_an_error(pauses, may_recover, message, waits):
    """Bug guarded: training on the handful of scores that arrived; ten minutes of asking one that can never answer."""
    scorer = FailingScorer(lambda call: True)
    scorer.may_recover, scorer.last_failure = may_recover, "a reason"
    with pytest.raises(JudgeUnavailable, match=message):
        pending_scores(scorer).collect()
    assert pauses == waits


def test_a_stop_signal_ends_the_waiting(monkeypatch):
    """Bug guarded: a run that is killed with its checkpoint unwritten: it was asleep when the scheduler asked it to end."""
    monkeypatch.setattr(rl.judging.waiting, "sleep_unless_stopped", sleep_unless_stopped)
    pending = pending_scores(FailingScorer(lambda call: True))
    with StopSignals():
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(StoppedWhileWaiting, match="SIGUSR1"):
            pending.collect()
    assert sleep_unless_stopped(0.0) is None, "of a context that is over"


@pytest.mark.usefixtures("reward_for_length", "no_report")
def test_a_run_stops_with_a_checkpoint_and_goes_on_when_the_judge_is_back(place, monkeypatch, capsys):
    """Bug guarded: steps lost, or trained on nothing, while the judge is down."""
    down = [True]
    per_step = 2 * (4 + 2)
    monkeypatch.setitem(NAMED_JUDGES, "rules", lambda: FailingScorer(lambda call: down[0] and call > 3 * per_step))
    monkeypatch.setattr("rl.rollout.judged_text", lambda sample, sees: sample.text or "-")
    arguments = flags(place, "down", "--judge-options", '{"patience": 7}')
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "stopped after step 3: 12 of 12 scores are missing after 7 s" in said
    assert complete_checkpoints(place / "runs/down")[-1].name == "step_000003"
    assert len(lines_of(place / "runs/down/metrics.jsonl")) == 3
    down[0] = False
    assert train.main([*arguments, "--resume", "auto"]) == 0
    monkeypatch.setitem(NAMED_JUDGES, "rules", RuleScorer)
    assert train.main(flags(place, "healthy", "--judge-options", '{"patience": 7}')) == 0
    assert_same_run(place / "runs/down", place / "runs/healthy")


@pytest.mark.parametrize(
    ("think", "nothing"),
    [
        ("9:351><refine>9:351></refine>", True), ("a  b\nc<refine> b c </refine>", True), ("a<refine></refine>", True),
        ("9:351><refine>8:312></refine>", False), ("a<refine>a</refine><refine>b</refine>", False),
        ("a<refine>b</refine><refine>b</refine>", False), ("<refine>b</refine>b", False), ("a", False),
    ],
)  # fmt: skip
def test_refinements_that_change_nothing(think, nothing):
    """Bug guarded: counting what stands behind a refinement as said before it."""
    assert changes_nothing(f"<think>{think}</think><answer>c</answer>") is nothing


def test_variance_shares_add_up():
    parts = [[1.0, -1.0, 1.0, 1.0], [0.0, 1.0, 0.5, 1.0], [0.0, 0.0, -1.0, 1.0]]
    total = [sum(column) for column in zip(*parts, strict=True)]
    assert sum(variance_share(part, total) for part in parts) == pytest.approx(1.0)
    assert variance_share([1.0, 1.0], [2.0, 2.0]) == 0.0


@pytest.mark.usefixtures("reward_for_length", "no_report")
@pytest.mark.slow
def test_twenty_steps_behind_a_failing_server_are_those_behind_a_healthy_one(place, monkeypatch, tmp_path, capsys):
    """Bug guarded: a score lost, invented or given to another answer when three calls in ten fail and one in ten is slow."""
    monkeypatch.setattr("rl.rollout.judged_text", lambda sample, sees: sample.text or "-")
    monkeypatch.setattr(rl.judging.judge, "HttpJudge", partial(HttpJudge, backoff=0.01))
    options = ("--judge-model", "any", "--judge-options", '{"timeout": 0.3}', "--steps", "20")
    for runs, share in (("healthy", 0.0), ("faulty", 0.3)):
        failing = some_fail(share, share / 3)
        plan = lambda prompt, attempt, fail=failing: fail(prompt, attempt) if attempt < 4 else ""  # noqa: E731
        with running(FakeJudge(lambda prompt: f"{share_of(prompt):.3f}", plan, slow=0.05, hold=1.0)) as server:
            assert train.main(flags(place, "run", "--judge", server.url, *options, "--runs-dir", str(tmp_path / runs))) == 0
    healthy, faulty = (lines_of(tmp_path / runs / "run/metrics.jsonl") for runs in ("healthy", "faulty"))
    assert "WARNING: this judge does not tell" in capsys.readouterr().out, "its scores are noise"
    assert sum(row["judge/retries"] for row in healthy) == 0
    assert sum(row["judge/retries"] for row in faulty) > 30
    assert sum(row["judge/failed"] + row["judge/parse_failed"] for row in faulty) == 0
    kept = [k for k in healthy[0] if not k.startswith(("judge/latency", "judge/retries"))]
    one, other = ([{k: row[k] for k in kept if k in row} for row in without_costs(rows)] for rows in (faulty, healthy))
    assert one == other
    for file in (tmp_path / "healthy/run/rollouts").iterdir():
        assert file.read_bytes() == (tmp_path / "faulty/run/rollouts" / file.name).read_bytes()


def test_an_unreachable_server_is_an_error_before_the_policy_is_loaded(place, tmp_path, monkeypatch, capsys):
    """Bug guarded: an hour of sampling before the first call shows that nobody listens."""
    monkeypatch.setattr(rl.judging.judge, "HttpJudge", partial(HttpJudge, backoff=0.001, max_retries=1))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        with pytest.raises(SystemExit) as stop:
            train.main(flags(place, "unreachable", "--judge", url, "--judge-model", "m", "--runs-dir", str(tmp_path)))
    assert stop.value.code == 2
    assert "does not answer" in capsys.readouterr().out
    assert not (tmp_path / "unreachable").exists()
