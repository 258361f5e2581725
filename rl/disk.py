"""How much disk a run's checkpoints take, before it starts rather than when it is full."""

import shutil
from pathlib import Path

from rl.terminal import gigabytes, wrapped

STATE_BYTES = 12  # a parameter's float32 master and two float32 moments of AdamW
HEADROOM = 1.02  # rollouts, metrics and file systems want some too


def checkpoint_bytes(parameters: int, export_bytes: int) -> tuple[int, int]:
    """Bytes of the resumable state and of the exported weights of one checkpoint.

    Args:
        parameters: count of trained parameters.
        export_bytes: bytes of one exported weight.
    """
    return parameters * STATE_BYTES, parameters * export_bytes


def check_disk(folder: Path, parameters: int, export_bytes: int, *, keep: int, existing: int) -> str:
    """The arithmetic, to be printed when a run starts.

    Args:
        folder: an existing folder on the disk in question.
        keep: checkpoints kept; one more is on disk while it is written.
        existing: checkpoints of this run that are there already.

    Raises:
        ValueError: the disk is too small.
    """
    state, export = checkpoint_bytes(parameters, export_bytes)
    needed = int((state + export) * max(1, keep + 1 - existing) * HEADROOM)
    free = shutil.disk_usage(folder).free
    line = (
        f"disk: a checkpoint takes {gigabytes(state)} of state and {gigabytes(export)} of export; "
        f"keeping {keep} and writing one needs {gigabytes(needed)} more, {gigabytes(free)} are free"
    )
    if needed > free:
        raise ValueError(f"{line}. Use a --runs-dir on a larger disk, or a smaller --keep")
    return wrapped(line)
