"""Run folders and checkpoints that are damaged, foreign, full, shared or hostile."""

import json
import os
import pickle
import shutil
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from conftest import assert_same_run, flags, lines_of, run_in_child, write_task_folder
from safetensors.torch import load_file, save_file

import rl.run.checkpoint
import train
from rl.config import parse_config
from rl.run.checkpoint import check_disk, complete_checkpoints, damage, load_checkpoint
from rl.session import Session, open_session


def copied(place: Path, whole: Path, name: str) -> Path:
    """The finished run under another name, as if it had been cut off before its end."""
    run = place / "runs" / name
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()
    return run


def resumed(place: Path, name: str, *more: str) -> Session:
    session = open_session(parse_config(flags(place, name, "--resume", "auto", *more)))
    session.run.close()
    return session


def save(session: Session, step: int, keep: int) -> Path:
    state, renderer, source = session.state, session.renderer, session.source
    return rl.run.checkpoint.save_checkpoint(session.run.path, step, state, renderer, source, keep=keep)


def test_every_truncated_file_is_noticed(place, whole, capsys):
    """Bug guarded: a checkpoint half copied or cut by a full disk that loads as noise, or ends the run for good."""
    files = [f.relative_to(whole) for f in (whole / "checkpoints/step_000008").rglob("*") if f.is_file() and f.stat().st_size]
    assert len(files) >= 7
    for number, file in enumerate(files):
        run = copied(place, whole, f"truncated-{number}")
        size = (run / file).stat().st_size
        os.truncate(run / file, size // 2)
        assert resumed(place, run.name).first_step == 6, file
        assert "ignoring" in capsys.readouterr().out
        run = copied(place, whole, f"missing-{number}")
        (run / file).unlink()
        assert resumed(place, run.name).first_step == 6, file


def test_without_any_usable_checkpoint_the_run_starts_afresh(place, whole, capsys):
    """Bug guarded: metrics of steps that are made again, beside those of the new run."""
    run = copied(place, whole, "unmarked")
    for marker in run.glob("checkpoints/*/COMPLETE"):
        marker.unlink()
    assert resumed(place, "unmarked").first_step == 0
    assert lines_of(run / "metrics.jsonl") == []
    assert "no checkpoint yet" in capsys.readouterr().out


def test_a_checkpoint_of_nan_weights_is_refused(place, whole):
    """Bug guarded: NaN weights that are trained on."""
    run = copied(place, whole, "nan")
    session = resumed(place, "nan")
    with torch.no_grad():
        session.state.policy.model.norm.weight[0] = float("nan")
    shutil.rmtree(run / "checkpoints/step_000008")
    save(session, 8, keep=9)
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds NaN"):
        resumed(place, "nan")


def test_another_model_or_vocabulary_is_refused(place, whole, tmp_path):
    """Bug guarded: weights of one model loaded into another."""
    copied(place, whole, "other")
    changed = flags(place, "other", "--resume", "auto")
    changed[changed.index("--model") + 1] = str(write_task_folder(tmp_path / "m", "qwen2"))
    with pytest.raises(ValueError, match="--model was"):
        open_session(parse_config(changed))
    with pytest.raises(ValueError, match="belongs to another model"):
        open_session(parse_config([*changed, "--resume-with-changes"]))
    weights = load_file(tmp_path / "m/model.safetensors")
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"vocab_size": 20}
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = weights[name][:20].clone()
    save_file(weights, tmp_path / "m/model.safetensors")
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="only 20 rows"):
        open_session(parse_config([*changed, "--resume-with-changes"]))


def test_changed_flags_are_listed(place, whole):
    copied(place, whole, "flags")
    with pytest.raises(ValueError, match=r"--seed was 0, is 5; --zeta was 0\.05, is 0\.2"):
        resumed(place, "flags", "--seed", "5", "--zeta", "0.2")
    assert resumed(place, "flags", "--seed", "5", "--resume-with-changes").first_step == 8
    assert json.loads((place / "runs/flags/config.json").read_text())["config"]["seed"] == 5
    assert resumed(place, "flags", "--seed", "5", "--keep", "9", "--save-every", "1").first_step == 8, "these change nothing"


def test_resume_from_a_named_checkpoint(place, whole):
    """Bug guarded: what lies beyond it taken for the newest, or lost."""
    run = copied(place, whole, "named")
    session = resumed(place, "named", "--resume", str(run / "checkpoints/step_000006"))
    assert session.first_step == 6
    assert [row["step"] for row in lines_of(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert not (run / "rollouts/step_000007.jsonl").exists()
    assert not (run / "checkpoints/step_000008").exists()
    assert (run / "checkpoints/aside_step_000008/COMPLETE").exists()
    save(session, 7, keep=1)
    assert [c.name for c in complete_checkpoints(run)] == ["step_000007"]
    with pytest.raises(ValueError, match="expected runs/NAME/checkpoints/step_NNNNNN"):
        resumed(place, "named", "--resume", str(run))


@pytest.mark.parametrize("late", ["load_policy", "Sampler", "load_checkpoint"])
def test_what_fails_in_set_up_has_changed_nothing(place, whole, monkeypatch, late):
    """Bug guarded: metrics, checkpoints or config.json of a run changed by a command that then does not begin."""
    run = copied(place, whole, f"late-{late}")
    before = sorted(run.rglob("*")), (run / "metrics.jsonl").read_bytes(), (run / "config.json").read_bytes()
    monkeypatch.setattr(f"rl.session.{late}", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resumed(place, run.name, "--resume", str(run / "checkpoints/step_000006"))
    assert (sorted(run.rglob("*")), (run / "metrics.jsonl").read_bytes(), (run / "config.json").read_bytes()) == before
    monkeypatch.undo()
    assert resumed(place, run.name).first_step == 8


def test_a_complete_checkpoint_is_never_replaced(place, whole, monkeypatch):
    """Bug guarded: a judge that is away right after a save, and a kill while the same step is saved over it."""
    run = copied(place, whole, "again")
    session = resumed(place, "again")
    monkeypatch.setattr(rl.run.checkpoint, "_begin", lambda part: pytest.fail("written again"))
    assert save(session, 8, keep=1) == run / "checkpoints/step_000008"
    assert complete_checkpoints(run) == [run / "checkpoints/step_000008"], "older ones go as ever"


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(place, whole, monkeypatch):
    """Bug guarded: a power cut after the rename that leaves a checkpoint with its mark and without its bytes."""
    run = copied(place, whole, "flushed")
    session, flushed, fsync = resumed(place, "flushed"), [], os.fsync

    def note(handle: int) -> None:
        flushed.append((os.fstat(handle).st_ino, (run / "checkpoints/step_000009").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    folder = save(session, 9, keep=9)
    assert {(path.stat().st_ino, False) for path in (folder, *folder.rglob("*"))} <= set(flushed)
    assert {(path.stat().st_ino, True) for path in (run, run / "checkpoints")} <= set(flushed)


def test_a_finished_run_can_be_extended(place, whole):
    """Bug guarded: "finished; nothing to do" for a run that was asked for more steps."""
    run = place / "runs/extended"
    shutil.copytree(whole, run)
    arguments = flags(place, "extended", "--resume", "auto", "--resume-with-changes")
    assert open_session(parse_config(arguments)) is None
    arguments[arguments.index("--steps") + 1] = "9"
    assert train.main(arguments) == 0
    assert len(lines_of(run / "metrics.jsonl")) == 9
    assert json.loads((run / "summary.json").read_text())["steps"] == 9


def test_optimizer_flags_win_over_the_saved_ones(place, whole):
    """Bug guarded: --resume-with-changes that records new betas and trains with the old ones."""
    copied(place, whole, "betas")
    config = parse_config(flags(place, "betas", "--resume", "auto", "--resume-with-changes"))
    session = open_session(replace(config, adam_beta2=0.5))
    session.run.close()
    assert session.state.optimizer.param_groups[0]["betas"] == (0.9, 0.5)


def test_a_checkpoint_before_the_first_optimizer_step(place, whole):
    """Bug guarded: saving makes torch run a hidden step, or leaves a checkpoint that cannot be read again."""
    run = copied(place, whole, "early")
    shutil.rmtree(run / "checkpoints")
    session = resumed(place, "early")
    session.state.policy.lm_head.weight.grad = torch.full_like(session.state.policy.lm_head.weight, float("nan"))
    save(session, 1, keep=1)
    again = resumed(place, "early")
    assert again.first_step == 1
    for trained in (session.state, again.state):
        assert {float(state["step"]) for state in trained.optimizer.state.values()} == {0.0}


def test_a_full_disk_costs_only_the_checkpoint_being_written(place, whole, monkeypatch):
    """Bug guarded: the old checkpoint deleted before the new one is whole."""
    full = OSError(28, "No space left on device")
    for number, (owner, name) in enumerate([(dcp, "save"), (rl.run.checkpoint, "save_model"), (rl.run.checkpoint, "_mark")]):
        with monkeypatch.context() as patch:
            original, calls = getattr(owner, name), []

            def write(*args, original=original, calls=calls, **kwargs):
                calls.append(1)
                if len(calls) == 2:
                    raise full
                return original(*args, **kwargs)

            patch.setattr(owner, name, write)
            with pytest.raises(OSError, match=r"step 4 could not be written.*No space left.*--resume auto"):
                train.main(flags(place, f"full-{number}"))
        run = place / "runs" / f"full-{number}"
        assert [c.name for c in complete_checkpoints(run)] == ["step_000002"]
        assert train.main(flags(place, run.name, "--resume", "auto")) == 0
        assert_same_run(run, whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_in_one_of_several_writers(place, whole, monkeypatch):
    """Bug guarded: a checkpoint marked complete without the file whose thread failed; torch forgets errors of its threads."""
    monkeypatch.setattr(rl.run.checkpoint, "FILE_BYTES", 1)  # a file for each tensor
    dump = safetensors.torch.save
    session, failed = resumed(place, copied(place, whole, "thread").name), threading.Event()

    def save_in_main_thread(*args, **kwargs):
        if threading.current_thread() is threading.main_thread():
            assert failed.wait(60)  # leave one file to the others
            return dump(*args, **kwargs)
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save", save_in_main_thread)
    with pytest.raises(
        OSError, match=r"step 7 could not be written.*[123] of \d+ tensors were not written.*Earlier checkpoints"
    ):
        save(session, 7, keep=9)
    assert [c.name for c in complete_checkpoints(session.run.path)] == [c.name for c in complete_checkpoints(whole)]
    monkeypatch.setattr(safetensors.torch, "save", dump)
    assert load_checkpoint(save(session, 7, keep=9), session.state) == 7


def test_too_small_a_disk_is_refused_before_the_run(place, tmp_path):
    """Bug guarded: 106 GB a checkpoint, found out after hours."""
    line = check_disk(tmp_path, 1000, 2, keep=2)
    assert "0.0 MB of state" in line
    with pytest.raises(ValueError, match=r"takes 12000000\.0 GB of state and 2000000\.0 GB of export.*--keep"):
        check_disk(tmp_path, 10**15, 2, keep=2)


def test_a_broken_metrics_file(place, whole):
    """Bug guarded: half a line that ends every attempt to resume; rubbish that is taken for a record."""
    run = copied(place, whole, "half-line")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "rewa')
    assert resumed(place, run.name).first_step == 8
    assert len(lines_of(run / "metrics.jsonl")) == 8
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "rubbish", *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="line 2 is not a metrics record"):
        resumed(place, run.name)


def test_two_processes_on_one_run(place, whole, capfd):
    """Bug guarded: two jobs of one name that write into each other's files."""
    copied(place, whole, "shared")
    session = open_session(parse_config(flags(place, "shared", "--resume", "auto")))
    with closing(session.run):
        assert run_in_child(flags(place, "shared", "--resume", "auto")) == 2
    assert "another process is writing" in capfd.readouterr().out
    assert resumed(place, "shared").first_step == 8


class Hostile:
    """An object that touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize(
    ("file", "message"),
    [("counters.json", "cannot be read"), (None, "cannot be read")],
)
def test_loading_executes_nothing(place, whole, tmp_path, file, message):
    """Bug guarded: a downloaded checkpoint that runs a program."""
    run = copied(place, whole, f"hostile-{file}")
    folder = run / "checkpoints/step_000008"
    target = folder / "state" / file if file else next((folder / "state").glob("*.safetensors"))
    target.write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    rl.run.checkpoint._mark(folder, 8)
    assert damage(folder) is None
    with pytest.raises(ValueError, match=message):
        open_session(parse_config(flags(place, run.name, "--resume", "auto")))
    assert not (tmp_path / "owned").exists()
