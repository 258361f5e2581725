"""The paper's training set: WizardLM's Evol-Instruct questions, downloaded (or from a local file), cleaned and cached.

    python -m data.evol_instruct                                   # from the hub, about 130 MB, once
    python -m data.evol_instruct --source FILE --show-removed 5    # a local copy or sample; what did each rule remove?

Writes evol_instruct.jsonl, which `data.examples.load_examples` reads, and evol_instruct.manifest.json beside it: its source,
the thresholds, and the number of rows that each rule removed. The rules themselves are in data/cleaning.py.
"""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import hf_hub_download

from data.cleaning import REASONS, CleaningRules, apply_rules, clean, count_table
from data.examples import Example, Row, download_error

HUB_ID = "WizardLMTeam/WizardLM_evol_instruct_70k"
HUB_FILE = "alpaca_evol_instruct_70k.json"  # the only data file of that repository
DATA_FILE, MANIFEST_FILE = "evol_instruct.jsonl", "evol_instruct.manifest.json"
VERSION = 3  # of the cleaning; raise it when the same thresholds would give other rows, so that a cached result is made anew


def prepare(source: str | Path | None, folder: Path, rules: CleaningRules = CleaningRules()) -> Path:  # noqa: B008 - frozen
    """Clean the training set into `folder`, print what was done, and return the JSONL's path.

    Args:
        source: a file holding one JSON list of {instruction, output}; None for the hub's data set. A folder that was prepared
            from the hub in the same way is used again without a request to the hub, so it works offline.
        folder: where the JSONL and its manifest go; made if absent.

    Raises:
        ValueError: the source cannot be had or read, a row lacks instruction or output, or no row is left.
    """
    # what is there already, if it was made in the same way
    path = folder / DATA_FILE
    setting = {"version": VERSION, "rules": asdict(rules), "source": HUB_ID if source is None else Path(source).name}
    if source is None and _vouches_for(folder / MANIFEST_FILE, path, setting):
        print(f"{path} is up to date")
        return path

    # clean and write; the manifest comes last because it vouches for the data
    file = hub_file() if source is None else Path(source)
    rows, digest = read_instructions(file)
    kept, counts = clean(rows, rules)
    print(count_table(counts))
    if not kept:
        raise ValueError(f"cleaning left none of the {len(rows)} rows of {file}")
    folder.mkdir(parents=True, exist_ok=True)
    records = ({"question": row.question, "answer": row.reference, "id": row.id} for row in kept)
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    manifest = setting | {"source_sha256": digest, "counts": counts, "output_sha256": sha256(path)}
    _write(folder / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    print(f"wrote {path} and {MANIFEST_FILE}")
    return path


def hub_file() -> Path:
    """Return the data set's file in the hub's cache, downloaded if it is not there."""
    try:
        return Path(hf_hub_download(HUB_ID, HUB_FILE, repo_type="dataset"))
    except (OSError, ValueError) as error:  # every error of the hub and its connection is one of these
        advice = f"copy {HUB_FILE} from that data set to this machine and run python -m data.evol_instruct --source FILE"
        raise download_error(HUB_ID, error, advice) from error


def read_instructions(file: Path) -> tuple[list[Example], str]:
    """Read a JSON list of {instruction, output}, with an optional `input`. Return the rows and the SHA-256 of the file.

    Ids are positions in the list. Empty texts and lone surrogates pass, because the published set has some and the cleaning
    removes them. A row without instruction or output is a ValueError that names it.
    """
    if not file.is_file():
        raise ValueError(f"no data file at {file}")
    try:
        rows = json.loads(file.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} must hold one JSON list of {{instruction, output}}, found {type(rows).__name__}")
    named = (Row(row, f"{file}, item {number}") for number, row in enumerate(rows, start=1))
    return [row.example(f"evol-{number:06d}", may_be_empty=True) for number, row in enumerate(named, start=1)], sha256(file)


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _vouches_for(manifest: Path, path: Path, setting: dict) -> bool:
    """Tell if a manifest is one of this setting, and the data beside it are as they were written."""
    try:
        saved = json.loads(manifest.read_text(encoding="utf-8"))
        return setting.items() <= saved.items() and saved["output_sha256"] == sha256(path)
    except (OSError, ValueError, KeyError, AttributeError):  # absent, or left half by a kill: the data are prepared again
        return False


def _write(path: Path, text: str) -> None:
    """Write under a temporary name of this process, then rename: a reader finds the whole file or none."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


def show_removed(rows: list[Example], rules: CleaningRules, number: int) -> None:
    """Print the first rows that each rule removed."""
    rows, reasons = apply_rules(rows, rules)
    for reason in REASONS:
        removed = [row for row, r in zip(rows, reasons, strict=True) if r == reason]
        print(f"\n{reason}: {len(removed)} removed")
        for row in removed[:number]:
            question, answer = (" ".join(text.split()) for text in (row.question, row.reference))
            print(f"  {row.id}  Q: {question[:160]!r}\n{'':15}A: {answer[:80]!r} ({len(row.reference)} characters)")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prepare the paper's training set.", allow_abbrev=False)
    parser.add_argument("--source", help=f"a JSON list of {{instruction, output}}; default: {HUB_ID} from the hub")
    parser.add_argument("--out", type=Path, default="runs/data", help="folder of the result (default: %(default)s)")
    parser.add_argument("--show-removed", type=int, default=0, metavar="N", help="print N rows that each rule removed")
    options = parser.parse_args(argv)
    try:
        prepare(options.source, options.out)
        if options.show_removed:
            rows, _ = read_instructions(Path(options.source) if options.source else hub_file())
            show_removed(rows, CleaningRules(), options.show_removed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
