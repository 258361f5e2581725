"""Writing files so that a kill at any moment leaves whole ones behind, and finding those of each step."""

import fcntl
import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one, never a part."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def append_line(file: Path, line: str) -> None:
    """Add a line to a file that several processes, on several machines, add to; a last line that was cut off is left behind.

    Raises:
        OSError: it could not be written, for example because the disk is full.
    """
    with file.open("a+b") as output:
        fcntl.flock(output, fcntl.LOCK_EX)  # until it is closed, which is after the line has been written
        if output.seek(0, os.SEEK_END):
            output.seek(-1, os.SEEK_END)
            if output.read(1) != b"\n":
                output.write(b"\n")
        output.write(line.encode() + b"\n")
        output.flush()


def files_by_step(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the files step_NNNNNN of a folder in the order of their steps; others, a copy by hand say, are left out."""
    files = {file.stem.removeprefix("step_"): file for file in folder.glob(f"step_*{suffix}")}
    return {int(number): files[number] for number in sorted(filter(str.isdecimal, files), key=int)}
