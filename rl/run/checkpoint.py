"""Checkpoints: everything a run needs to go on, beside weights that transformers can load.

    checkpoints/step_000100/            config.json, *.safetensors, tokenizer, prompts.json: load it like any model;
                                        with --lora-rank an adapter in the format of peft in place of config and weights
    checkpoints/step_000100/state/      trained weights and optimizer (safetensors), counters.json
    checkpoints/step_000100/COMPLETE    sizes of all files, written last; a folder without it is not a checkpoint

All ranks save and load the state together, each its shard; rank 0 writes the rest. All of them must see the run folder.
A state saved by any number of processes is read by any other.

A checkpoint is written under another name, flushed to disk, marked and renamed; older ones are deleted only after that. So a
kill or a full disk at any moment costs at most the checkpoint that was being written.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, SavePlan, SavePlanner
from torch.futures import Future

from data.prompts import PromptRenderer
from model.checkpoint import all_finite, save_adapter, save_model
from model.folder import read_json, resolve_checkpoint, stored_dtype
from model.lora import adapter_parameters
from rl.distributed import broadcast_from_main, is_main, raise_on_all_ranks, world_size
from rl.run.console import gigabytes, wrapped
from rl.weights.exact_bf16 import LOW_BITS
from rl.weights.policy import TrainState
from rl.weights.sharding import rows_held, whole_weights

MARKER = "COMPLETE"
COUNTERS = ("optimizer_steps", "skipped_in_a_row")  # of a TrainState
WRITERS = 4  # threads of a process that write files of its state
FILE_BYTES = 10**9  # of tensors written together: each writer makes a file in memory
STATE_BYTES = 12  # a parameter's float32 master and two float32 moments of AdamW
HEADROOM = 1.02  # of a disk: rollouts, metrics and file systems want some too

# one process without a process group is what we mean
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class StateWriter(HuggingFaceStorageWriter):
    """Writes several files at a time, and notices a thread that failed, which torch does not."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future:
        written = super().write_data(plan, planner)
        if lost := len(plan.items) - len(written.wait()):
            raise OSError(f"{lost} of {len(plan.items)} tensors were not written, see the error of a thread above")
        return written


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}"


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None. Each file that its marker lists must have the size it had."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it was never completed"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def all_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, damaged ones too, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def complete_checkpoints(run: Path) -> list[Path]:
    """Return the undamaged checkpoints of a run, oldest first."""
    return [folder for folder in all_checkpoints(run) if not damage(folder)]


def newest_model(path: Path) -> Path:
    """Return the newest checkpoint of a run folder, or the folder itself if it is none."""
    return next(reversed(complete_checkpoints(path)), path)


def model_folder(path_or_hub_id: str) -> Path:
    """Return the folder of a model: of a run its newest checkpoint, of a hub id what is downloaded.

    Raises:
        ValueError: there is none.
    """
    folder = resolve_checkpoint(newest_model(Path(path_or_hub_id)))
    if (folder / "rollouts").is_dir():
        raise ValueError(f"{folder} is a run that has no complete checkpoint yet")
    return folder


def save_checkpoint(
    run: Path, step: int, state: TrainState, renderer: PromptRenderer, source: Path, keep: int, best: int | None = None
) -> Path:
    """Save after `step` steps, then delete all but the newest `keep` checkpoints and that of step `best`.

    A complete checkpoint of this step stays as it is, because replacing it would put it at risk.

    Args:
        source: the folder the policy was loaded from. Its configuration and tokenizer are copied, and its dtype is that of
            the exported weights.

    Raises:
        OSError: the checkpoint could not be written; the earlier ones are untouched.
    """
    target = checkpoint_folder(run, step)
    part = target.with_name(f".{target.name}.part")
    if broadcast_from_main(lambda: damage(target)):
        # write under another name; each library has its own error for a full disk
        try:
            broadcast_from_main(lambda: _begin(part))
            _save_state(state, step, part / "state")
            _export(state, renderer, source, part)
            broadcast_from_main(lambda: _complete(part, target, step))
        except (OSError, RuntimeError, SafetensorError, dcp.CheckpointException) as error:
            if is_main():
                shutil.rmtree(part, ignore_errors=True)
            raise OSError(
                f"the checkpoint of step {step} could not be written to {target}: {_reason(error)}. "
                "Earlier checkpoints are untouched; make room and go on with --resume auto"
            ) from error
    broadcast_from_main(lambda: _prune(run, keep, best))
    return target


def _begin(part: Path) -> None:
    for leftover in part.parent.glob(".step_*.part"):
        shutil.rmtree(leftover)
    part.mkdir(parents=True)


def _save_state(state: TrainState, step: int, folder: Path) -> None:
    """Write weights, optimizer and counters: all ranks together, each its shard."""
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(state).items()}  # safetensors takes no others
    file_numbers, written = {}, 0
    for name, tensor in tensors.items():
        file_numbers[name] = 1 + written // FILE_BYTES
        written += tensor.numel() * tensor.itemsize
    writer = StateWriter(str(folder), file_numbers, thread_count=WRITERS, save_distributed=True)
    dcp.save(tensors, storage_writer=writer, no_dist=world_size() == 1)
    counters = json.dumps({"step": step} | {name: getattr(state, name) for name in COUNTERS})
    broadcast_from_main(lambda: (folder / "counters.json").write_text(counters + "\n", encoding="utf-8"))


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Return trained weights and the optimizer's state by name. They are the run's own tensors, to be written or filled."""
    tensors = {}
    for name, parameter in state.policy.named_parameters():
        if parameter.requires_grad:
            tensors[f"model.{name}"] = parameter.detach()
            tensors |= {f"optimizer.{name}.{part}": tensor for part, tensor in state.optimizer.state[parameter].items()}
    return tensors


def _export(state: TrainState, renderer: PromptRenderer, source: Path, part: Path) -> None:
    """Write weights, configuration and tokenizer for transformers. All ranks gather the weights together, one by one."""
    policy, dtype = state.policy, stored_dtype(source)
    has_adapters = len(adapter_parameters(policy)) > 0
    weights = iter(()) if has_adapters else whole_weights(policy, dtype)
    with raise_on_all_ranks(OSError, RuntimeError, SafetensorError):
        try:
            if is_main():
                if has_adapters:
                    save_adapter(policy, part, source=source)
                else:
                    save_model(policy, renderer.tokenizer, part, dtype=dtype, source=source, weights=weights)
                renderer.prompts.save(part)
        finally:
            for _ in weights:  # also when rank 0 could not write, because the others wait in the gathering of the next one
                pass


def _complete(part: Path, target: Path, step: int) -> None:
    _mark(part, step)
    _flush(part, *part.rglob("*"))
    shutil.rmtree(target, ignore_errors=True)  # an incomplete one of the same step
    part.rename(target)
    _flush(target.parent, target.parent.parent)  # the folders that name it


def _mark(folder: Path, step: int) -> None:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MARKER]
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    (folder / MARKER).write_text(json.dumps({"step": step, "files": sizes}, indent=2) + "\n", encoding="utf-8")


def _flush(*paths: Path) -> None:
    """Force files to disk; of a folder, the names in it."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _prune(run: Path, keep: int, best: int | None) -> None:
    for old in complete_checkpoints(run)[:-keep]:
        if best is None or old != checkpoint_folder(run, best):
            shutil.rmtree(old)


def load_checkpoint(folder: Path, state: TrainState) -> int:
    """Restore weights, optimizer and counters in place, bit for bit. Return the number of steps done.

    Raises:
        ValueError: the state is damaged, holds values that are not finite, belongs to another model, or keeps its masters in
            another way.
    """
    path, tensors = folder / "state", _tensors(state)
    try:
        # counters, and the names of what was saved, before any tensor is overwritten
        counters = read_json(path / "counters.json")
        step, *counts = (int(counters[name]) for name in ("step", *COUNTERS))
        reader = HuggingFaceStorageReader(str(path))
        saved = reader.read_metadata().state_dict_metadata.keys()
        was, now = _kept_by(saved), _kept_by(tensors)
        if was == now:
            if surplus := saved - tensors.keys():
                raise ValueError(f"it also holds {min(surplus)}")
            dcp.load(tensors, storage_reader=reader, no_dist=world_size() == 1)
    except (dcp.CheckpointException, SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} cannot be read, or belongs to another model: {_reason(error)}") from error
    if was != now:
        raise ValueError(f"{folder} keeps its float32 masters in another way than this run: go on with {was}")

    # weights that are not finite on one rank end the run on all of them
    with raise_on_all_ranks(ValueError):
        for name, parameter in state.policy.named_parameters():
            if not all_finite(rows_held(parameter)[0]):
                raise ValueError(f"{folder}: {name} holds NaN or infinite values; resume from an earlier checkpoint")
    for name, value in zip(COUNTERS, counts, strict=True):
        setattr(state, name, value)
    return step


def _kept_by(names: Iterable[str]) -> str:
    """Return the flags of runs whose state has tensors of these names."""
    if any(".lora_" in name for name in names):
        return "the --lora-rank of that run"
    if any(name.endswith(LOW_BITS) for name in names):
        return "--memory exact-bf16"
    return "--memory shard or --memory offload, without --lora-rank"


def _reason(error: BaseException) -> str:
    """Return the last line of a message, because torch puts a traceback before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def check_disk(run: Path, parameters: int, export_bytes: int, keep: int) -> str:
    """Check that the checkpoints of a run fit on its disk, `keep` of them and the one being written. Return the arithmetic.

    Args:
        keep: 0: none is saved.
        export_bytes: those of one exported weight.

    Raises:
        ValueError: the disk is too small.
    """
    if keep == 0:
        return "disk: --keep 0 saves no checkpoint; a run that is stopped cannot be continued"
    state, export = parameters * STATE_BYTES, parameters * export_bytes
    needed = int((state + export) * max(1, keep + 1 - len(complete_checkpoints(run))) * HEADROOM)
    free = shutil.disk_usage(run).free
    line = (
        f"disk: a checkpoint takes {gigabytes(state)} of state and {gigabytes(export)} of export; "
        f"keeping {keep} and writing one needs {gigabytes(needed)} more, {gigabytes(free)} are free"
    )
    if needed > free:
        raise ValueError(f"{line}. Use a --runs-dir on a larger disk, or a smaller --keep")
    return wrapped(line)
