"""Evaluations with a judge beside the rules: a server or the model itself, one instruction for each kind, scores that fail."""

import json
from concurrent.futures import Future

import pytest
from evaluation import arguments, run, scripted, write_reader_folder, write_rows, write_sums
from judging import FakeJudge as FakeServer
from judging import running

import evaluate
import rl.evaluation.run
import rl.evaluation.scores
from rewards.judge import NAMED_JUDGES, RuleScorer
from rewards.judge_prompts import benchmark_score


@pytest.fixture
def sums(tmp_path):
    return write_sums(tmp_path)


class FakeJudge:
    """Scores what contains a 1; fails where told to."""

    last_failure = "it was down"

    def __init__(self, failing=()) -> None:
        self.failing, self.asked = failing, []

    def submit(self, item):
        self.asked.append(item)
        future = Future()
        future.set_result(None if item.question.startswith(self.failing) else 0.9 if "1" in item.answer else 0.4)
        return future

    def finish(self):
        pass


def test_judge_and_rule_stand_side_by_side(sums, tmp_path, monkeypatch, capsys):
    """Bug guarded: a failed score that counts as 0 or is never asked for again; a right or wrong that counts .9."""
    scripted(monkeypatch, lambda prompt, sample: "" if "5 + 1" in prompt else "Answer: 1" if "0 + 1" in prompt else "Answer: 0")
    assert {record.scores["judge"] for record in run(sums, tmp_path)} == {None}
    calls, judge = scripted(monkeypatch, lambda prompt, sample: pytest.fail("drawn again")), FakeJudge(failing=("2 +",))
    records = run(sums, tmp_path, judges={"open": judge})
    assert not calls, "a judge can be added later"
    assert [r.scores["judge"] for r in records] == [1.0, 0.0, None, 0.0, 0.0, 0.0]
    assert [r.scores["rule"] for r in records] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert len(judge.asked) == 5, "an empty answer needs no call"
    assert "no judge's score for 1 answers (it was down)" in capsys.readouterr().out
    again = FakeJudge()
    records = run(sums, tmp_path, judges={"open": again})
    assert [item.question[:5] for item in again.asked] == ["2 + 1"]
    assert records[2].scores["judge"] == 0.0


def test_judge_reads_the_answer_that_counts(tmp_path, sums, monkeypatch):
    """Bug guarded: a judge that is shown the thinking, or "The solution is right." in place of the solution."""
    said = "<think>9</think>Answer: 1"
    scripted(monkeypatch, lambda prompt, sample: "The solution is right." if "step by step" in prompt else said)
    judge = FakeJudge()
    run(sums, tmp_path, method="self-refine", judges={"open": judge})
    assert {item.answer for item in judge.asked} == {"Answer: 1"}


def test_summaries_keep_degrees():
    assert [benchmark_score("summary", 0.4), benchmark_score("open", 0.4), benchmark_score("choice", 0.5)] == [0.4, 0.0, 1.0]
    assert benchmark_score("open", None) is None


def test_answers_that_other_rules_have_scored_are_scored_anew(sums, tmp_path, monkeypatch, capsys):
    """Bug guarded: a rule is changed, and half of a table is still by the old one; or every answer is drawn again for it."""
    twice = {"temperature": 1.0, "samples": 2}
    scripted(monkeypatch, lambda prompt, sample: f"Answer: {1 + sample}")
    first = run(sums, tmp_path / "out", judges={"open": FakeJudge()}, **twice)
    assert [r.scores["rule"] for r in first] == [1.0, 0.0, 0.0, 1.0] + [0.0] * 8
    judged = [r.scores["judge"] for r in first]
    assert set(judged) == {0.0, 1.0}
    for module in (rl.evaluation.run, rl.evaluation.scores):
        monkeypatch.setattr(module, "rules_version", lambda: "later")
    assert evaluate.main(["--table", str(tmp_path / "out")]) == 0
    assert "scored by other rules than today's (evaluate again): sums 12" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(rl.evaluation.run, "score_benchmark", lambda kind, text, *_: (text, 0.5))
    scripted(monkeypatch, lambda prompt, sample: pytest.fail("drawn again"))
    records = run(sums, tmp_path / "out", **twice)
    assert [(r.id, r.sample, r.answer) for r in records] == [
        (f"sums-{i}", s, f"Answer: {1 + s}") for i in range(6) for s in (0, 1)
    ]
    assert {(r.scores["rule"], r.rules) for r in records} == {(0.5, "later")}
    assert [r.scores["judge"] for r in records] == judged
    assert "12 answers that are there already are scored anew" in capsys.readouterr().out
    run(sums, tmp_path / "out", **twice)
    assert "scored anew" not in capsys.readouterr().out, "once"


def test_a_server_judges_each_kind_with_its_instruction(tmp_path, capsys):
    """Bug guarded: one prompt for all kinds; a judge behind a server that is asked as an in-process one."""
    write_reader_folder(tmp_path / "m")
    files = [
        write_rows(tmp_path / f"{kind}.jsonl", [{"question": f"{kind}?\nA: x\nB: y", "answer": "B"}])
        for kind in ("exact", "choice", "summary")
    ]
    names = ",".join(f"my-{file.stem}={file}:{file.stem}" for file in files)
    judge = FakeServer(lambda prompt: "0.3" if "summary" in prompt and "Article" in prompt else "1")
    with running(judge):
        flags = ["--benchmarks", names, "--methods", "vanilla", "--judge", judge.url, "--judge-model", "some"]
        assert evaluate.main(arguments(tmp_path, *flags)) == 0
    cells = json.loads((tmp_path / "out" / "table.json").read_text())["rows"][0]["cells"]
    assert {name: cell["judge"] for name, cell in cells.items()} == {"my-exact": 1.0, "my-choice": 1.0, "my-summary": 0.3}
    prompts = [prompt for prompt in judge.asked if "A: x" in prompt]
    assert sum("picks the right option" in prompt for prompt in prompts) == 1
    assert all("digit" not in prompt for prompt in prompts)
    assert (tmp_path / "out" / "judge_cache.jsonl").exists()


def test_a_judge_of_ones_own_scores_beside_the_rules(tmp_path, monkeypatch, capsys):
    """Bug guarded: --judge NAME that is taken and then asked nothing."""

    class LengthJudge(RuleScorer):
        def submit(self, item):
            future = Future()
            future.set_result(float(len(item.answer) > 3))
            return future

    monkeypatch.setitem(NAMED_JUDGES, "length", LengthJudge)
    write_reader_folder(tmp_path / "m")
    flags = ["--benchmarks", f"sums={write_sums(tmp_path).file}:number", "--methods", "vanilla", "--judge", "length"]
    assert evaluate.main(arguments(tmp_path, *flags)) == 0
    cell = json.loads((tmp_path / "out" / "table.json").read_text())["rows"][0]["cells"]["sums"]
    assert (cell["accuracy"], cell["judge"]) == (0.0, 1.0)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["judge"][0] == "length"
