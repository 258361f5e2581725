"""Checkpoints: everything a run needs to go on, beside weights that transformers can load.

    checkpoints/step_000100/            config.json, *.safetensors, tokenizer, prompts.json: load it like any model
    checkpoints/step_000100/state/      weights, optimizer and counters (torch.distributed.checkpoint)
    checkpoints/step_000100/COMPLETE    written last; a folder without it is not a checkpoint

A checkpoint is written under another name, flushed to disk, and renamed; older ones are deleted only after that.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from data.prompts import PromptRenderer
from model.checkpoint import save_model
from rl.update import Updater

MARKER = "COMPLETE"


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}"


def complete_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(folder for folder in (run / "checkpoints").glob("step_*") if (folder / MARKER).is_file())


def save_checkpoint(run: Path, step: int, updater: Updater, renderer: PromptRenderer, source: Path, keep: int) -> Path:
    """Save after `step` steps, then delete all but the newest `keep` checkpoints.

    Args:
        source: the folder the policy was loaded from; its configuration files travel along.
    """
    target = checkpoint_folder(run, step)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with _single_process():
        dcp.save(_state(updater, step), checkpoint_id=part / "state", no_dist=True)
    save_model(updater.policy, renderer.tokenizer, part, source=source)
    renderer.prompts.save(part)
    (part / MARKER).write_text(f"{step}\n")
    _flush(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    _flush(target.parent)
    for old in complete_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, updater: Updater) -> int:
    """Restore weights, optimizer and counters in place.

    Returns:
        The number of steps done.

    Raises:
        ValueError: not a complete checkpoint.
    """
    if not (folder / MARKER).is_file():
        raise ValueError(f"{folder} is not a complete checkpoint")
    state = _state(updater, step=0)
    with _single_process():
        dcp.load(state, checkpoint_id=folder / "state", no_dist=True)
    set_state_dict(updater.policy, updater.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    updater.optimizer_steps, updater.skipped_in_a_row = state["optimizer_steps"], state["skipped_in_a_row"]
    return state["step"]


def newest_model(path: Path) -> Path:
    """A run folder stands for its newest checkpoint; any other folder for itself."""
    checkpoints = complete_checkpoints(path)
    return checkpoints[-1] if checkpoints else path


def _state(updater: Updater, step: int) -> dict:
    model, optimizer = get_state_dict(updater.policy, updater.optimizer)
    return {
        "model": model,
        "optimizer": optimizer,
        "step": step,
        "optimizer_steps": updater.optimizer_steps,
        "skipped_in_a_row": updater.skipped_in_a_row,
    }


@contextmanager
def _single_process() -> Iterator[None]:
    """One process is what is meant; torch need not warn that it assumes so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _flush(folder: Path) -> None:
    """Force every file below a folder, and the folders themselves, to disk."""
    for path in [folder, *folder.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
