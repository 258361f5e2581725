"""Nothing is ever lost: kills at any moment, stop signals, and the same run after them to the last bit."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from conftest import assert_same_run, flags, run_in_child, start_child

import rl.rollout
import rl.run.checkpoint
import train
from rl.report import write_report
from rl.run.checkpoint import complete_checkpoints
from rl.run.folder import RunFolder


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(number: int, function, *, before: bool = False, half_line_in: Path | None = None):
    """`function`, with a SIGKILL before or after its `number`-th call."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if before and len(calls) == number:
            die()
        result = function(*args, **kwargs)
        if len(calls) == number:
            if half_line_in is not None:
                with half_line_in.open("a") as file:
                    file.write('{"step": 99, "rew')
            die()
        return result

    return wrapped


def moments(run: Path) -> dict:
    """Return the moments of a kill: (object, attribute, replacement). The first checkpoint is that of step 2."""
    return {
        "rollout": (rl.rollout.Rollout, "sample_and_judge", on_call(4, rl.rollout.Rollout.sample_and_judge)),
        "update, before the optimizer": (train, "optimizer_step", on_call(4, train.optimizer_step, before=True)),
        "update, after the optimizer": (train, "optimizer_step", on_call(5, train.optimizer_step)),
        "metrics, half a line": (RunFolder, "log", on_call(3, RunFolder.log, half_line_in=run / "metrics.jsonl")),
        "rollout file": (RunFolder, "log_rollouts", on_call(5, RunFolder.log_rollouts)),
        "save, before the state": (dcp, "save", on_call(2, dcp.save, before=True)),
        "save, after the state": (dcp, "save", on_call(3, dcp.save)),
        "export": (rl.run.checkpoint, "save_model", on_call(2, rl.run.checkpoint.save_model)),
        "save, before it is marked": (rl.run.checkpoint, "_mark", on_call(2, rl.run.checkpoint._mark, before=True)),
        "save, before the rename": (rl.run.checkpoint, "_flush", on_call(3, rl.run.checkpoint._flush)),
        "save, after the rename": (rl.run.checkpoint, "_flush", on_call(4, rl.run.checkpoint._flush)),
        "last step, after its checkpoint": (RunFolder, "finish", on_call(1, RunFolder.finish, before=True)),
    }


@pytest.mark.parametrize("moment", moments(Path()))
def test_killed_at_any_moment_and_resumed(place, whole, moment):
    """Bug guarded: state that is written in the wrong order, a metrics line doubled or lost, a checkpoint half written."""
    name = "".join(c if c.isalnum() else "-" for c in moment)
    run = place / "runs" / name
    assert run_in_child(flags(place, name), moments(run)[moment]) == -signal.SIGKILL
    assert complete_checkpoints(run), "killed before the first checkpoint: the test is not the one it claims to be"
    assert train.main(flags(place, name, "--resume", "auto")) == 0
    assert_same_run(run, whole)


def test_killed_at_random_times_and_resumed(place, whole, monkeypatch):
    """Bug guarded: moments that nobody thought of. The process is killed again and again until it gets through."""
    monkeypatch.setattr(train, "write_report", write_report)  # kills come while it is written, too
    run, kills, resumed = place / "runs" / "random", 0, 0
    for attempt in range(60):
        resumed += bool(complete_checkpoints(run))
        child = start_child(flags(place, "random", "--resume", "auto"))
        deadline = time.monotonic() + 0.04 + 0.03 * attempt  # a little longer each time, so that it gets through at last
        while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        try:
            os.kill(child, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        except (ProcessLookupError, ChildProcessError):
            break
    assert train.main(flags(place, "random", "--resume", "auto")) == 0
    assert kills >= 2
    assert resumed >= 1, "every kill came before the first checkpoint"
    assert_same_run(run, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_stop_signals_finish_the_step_and_save(place, whole, capsys, monkeypatch, name):
    """Bug guarded: a scheduler's signal that costs the steps since the last checkpoint."""
    step = train.optimizer_step
    steps, reported = [], []

    def signal_in_step_3(*args):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(getattr(signal, name))
        return step(*args)

    def report(folders):
        reported.append(len(steps))

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    monkeypatch.setattr(train, "optimizer_step", signal_in_step_3)
    monkeypatch.setattr(train, "write_report", report)
    assert train.main(flags(place, name)) == 0
    said = capsys.readouterr().out
    assert f"stopped by {name} after step 3; go on with the same flags and" in said
    assert f"--run {name} --resume auto" in said
    assert complete_checkpoints(place / "runs" / name)[-1].name == "step_000003"
    assert not (place / "runs" / name / "summary.json").exists()
    assert reported == [2, 3], "at every checkpoint, and when it stops"
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert train.main(flags(place, name, "--resume", "auto")) == 0
    assert_same_run(place / "runs" / name, whole)


def test_keep_0_saves_nothing_and_says_so(place, reward_for_length, no_report, capsys, monkeypatch):
    """Bug guarded: 100 GB written to a disk of 64 by a trial; a user sent to continue or to ask what was never saved."""
    step, steps = train.optimizer_step, []

    def signal_in_step_1(*args):
        if not steps:
            signal.raise_signal(signal.SIGTERM)
        steps.append(1)
        return step(*args)

    monkeypatch.setattr(train, "optimizer_step", signal_in_step_1)
    for run, end in (("stopped", "nothing was saved, so it cannot be continued"), ("ended", "no model was saved")):
        assert train.main(flags(place, run, "--keep", "0", "--save-every", "1", "--steps", "2")) == 0
        said = capsys.readouterr().out
        assert "--keep 0 saves no checkpoint" in said
        assert end in said
        assert "--resume auto" not in said
        assert "talk to the model" not in said
        assert not (place / "runs" / run / "checkpoints").exists()
    assert len(steps) == 3


def test_a_second_signal_leaves_at_once(place, whole, monkeypatch):
    """Bug guarded: a Ctrl-C that cannot be repeated while a rollout takes minutes."""
    judge = rl.rollout.Rollout.sample_and_judge
    calls = []

    def twice(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        return judge(self, *arguments)

    monkeypatch.setattr(rl.rollout.Rollout, "sample_and_judge", twice)
    with pytest.raises(SystemExit) as stop:
        train.main(flags(place, "twice"))
    assert stop.value.code == 128 + signal.SIGTERM
    assert train.main(flags(place, "twice", "--resume", "auto")) == 0
    assert_same_run(place / "runs" / "twice", whole)
