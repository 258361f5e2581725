"""The paper's training set: WizardLM's Evol-Instruct questions, downloaded (or from a local file), cleaned and cached.

    python -m data.evol_instruct                                   # from the hub, about 130 MB, once
    python -m data.evol_instruct --source FILE --show-removed 5    # a local copy or sample; what did each rule remove?

Writes evol_instruct.jsonl, which `data.examples.load_examples` reads, and evol_instruct.manifest.json beside it: what it was
made from, with which thresholds, and how many rows each rule removed. The rules themselves are in data/cleaning.py.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from huggingface_hub import hf_hub_download

from data.cleaning import REASONS, TERMS, CleaningRules, clean, rare_terms, sort_out
from data.examples import Example

HUB_ID = "WizardLMTeam/WizardLM_evol_instruct_70k"
HUB_FILE = "alpaca_evol_instruct_70k.json"  # the only data file of that repository
DATA_FILE, MANIFEST_FILE = "evol_instruct.jsonl", "evol_instruct.manifest.json"
DEFAULT_FOLDER = Path("runs") / "data"
VERSION = 1  # of the cleaning; raise it when the same thresholds would give other rows, so that what is cached is made anew


def prepare(source: str | Path | None, folder: Path, rules: CleaningRules = CleaningRules()) -> Path:  # noqa: B008 - frozen
    """Clean the training set into `folder`, unless it is there already, and say what happened.

    Args:
        source: a file holding one JSON list of {instruction, output}; None for the hub's data set. What was prepared from the
            hub is used again without asking the hub, so a prepared folder works offline.
        folder: where the JSONL and its manifest go; made if absent.
        rules: the thresholds.

    Returns:
        The path of the JSONL.

    Raises:
        ValueError: the source cannot be had or read, a row lacks instruction or output, or no row is left.
    """
    folder = Path(folder)
    path, manifest_file = folder / DATA_FILE, folder / MANIFEST_FILE
    ready = _intact_manifest(folder)
    wanted = {"version": VERSION, "rules": asdict(rules)}
    if ready and source is None and ready["source"]["name"] == HUB_ID and _agrees(ready, wanted):
        return _reuse(path, ready)
    file = hub_file() if source is None else Path(source)
    rows, digest = read_instructions(file)
    wanted["source"] = {"name": HUB_ID if source is None else file.name, "sha256": digest}
    if ready and _agrees(ready, wanted):
        return _reuse(path, ready)
    kept, counts = clean(rows, rules)
    print(counts.table())
    if not kept:
        raise ValueError(f"cleaning left none of the {counts.rows_in} rows of {file}; loosen the rules\n{counts.table()}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, (json.dumps(_record(row), ensure_ascii=False) + "\n" for row in kept))
    manifest = wanted | {"counts": asdict(counts), "output": {"name": path.name, "sha256": sha256(path)}}
    _write(manifest_file, [json.dumps(manifest, indent=2) + "\n"])  # last: it vouches for the data
    print(f"wrote {path} and {manifest_file.name}")
    return path


def hub_file() -> Path:
    """The data set's file in the hub's cache, downloaded if it is not there.

    Raises:
        ValueError: neither cached nor to be downloaded.
    """
    try:
        return Path(hf_hub_download(HUB_ID, HUB_FILE, repo_type="dataset"))
    except (OSError, ValueError) as error:  # every error of the hub and its connection is one of these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{HUB_ID} is not in the hub's cache and could not be downloaded: {reason}\n"
            f"Without network, copy {HUB_FILE} from that data set to this machine and give its path as the source "
            "(python -m data.evol_instruct --source FILE)."
        ) from error


def read_instructions(file: Path) -> tuple[list[Example], str]:
    """The rows of a JSON list of {instruction, output}, with ids by their place in it, and the SHA-256 of the file.

    Empty texts are let through: the published set has some, and removing them is the cleaning's work.

    Raises:
        ValueError: no such file, not a JSON list, or a row (it is named) without instruction or output.
    """
    if not file.is_file():
        raise ValueError(f"no data file at {file}")
    content = file.read_bytes()
    try:
        rows = json.loads(content)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} must hold one JSON list of {{instruction, output}}, found {type(rows).__name__}")
    examples = [_to_example(row, f"{file}, item {i}", i) for i, row in enumerate(rows, start=1)]
    return examples, hashlib.sha256(content).hexdigest()


def _to_example(row: object, place: str, number: int) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(row).__name__}")
    for key in ("instruction", "output"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{place}: {key!r} is missing or not a text; found {sorted(row)}")
    return Example(f"evol-{number:06d}", row["instruction"], row["output"])


def _record(row: Example) -> dict[str, str]:
    return {"question": row.question, "answer": row.reference, "id": row.id}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intact_manifest(folder: Path) -> dict | None:
    """The manifest, if it can be read and the data beside it are what it vouches for."""
    path, manifest_file = folder / DATA_FILE, folder / MANIFEST_FILE
    if not path.is_file() or not manifest_file.is_file():
        return None
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        intact = manifest["output"]["sha256"] == sha256(path) and {"source", "rules", "version", "counts"} <= set(manifest)
    except (ValueError, KeyError, TypeError) as error:
        print(f"{manifest_file} cannot be read ({error!r}); the data are prepared again")
        return None
    if not intact:
        print(f"{path} is not what its manifest vouches for; the data are prepared again")
    return manifest if intact else None


def _agrees(manifest: dict, wanted: dict) -> bool:
    return all(manifest[key] == value for key, value in wanted.items())


def _reuse(path: Path, manifest: dict) -> Path:
    print(f"{path} is up to date: {manifest['counts']['rows_out']:,} of {manifest['counts']['rows_in']:,} rows")
    return path


def _write(path: Path, lines: Iterable[str]) -> None:
    """Under a temporary name, of this process alone, then renamed: whoever finds `path` finds all of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def show_removed(rows: list[Example], rules: CleaningRules, number: int) -> None:
    """Print the first rows that each rule removed, for the frequency rules with what is rare in them, for a person to judge."""
    texts, reasons = sort_out(rows, rules)
    for reason in REASONS:
        print(f"\n{reason}: {reasons.count(reason)} removed")
        rare = {}
        if reason in TERMS:
            present = [text for text, r in zip(texts, reasons, strict=True) if not r or r in TERMS]
            terms = rare_terms([TERMS[reason](text.question) for text in present], rules)
            rare = {text.id: sorted(rare) for text, rare in zip(present, terms, strict=True)}
        for row in [text for text, r in zip(texts, reasons, strict=True) if r == reason][:number]:
            question, answer = (" ".join(text.split()) for text in (row.question, row.reference))
            print(f"  {row.id}  Q: {question[:160]!r}\n{'':15}A: {answer[:80]!r} ({len(row.reference)} characters)")
            if rare:
                few = ", ".join(term if isinstance(term, str) else " ".join(term) for term in rare[row.id][:8])
                print(f"{'':15}{len(rare[row.id])} rare: {few}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; every threshold has a flag."""
    parser = argparse.ArgumentParser(description="Prepare the paper's training set.", allow_abbrev=False)
    parser.add_argument("--source", help=f"a JSON list of {{instruction, output}}; default: {HUB_ID} from the hub")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder of the result (default: %(default)s)")
    parser.add_argument("--show-removed", type=int, default=0, metavar="N", help="print N rows that each rule removed")
    for field in fields(CleaningRules):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        rules = CleaningRules(**{field.name: getattr(given, field.name) for field in fields(CleaningRules)})
        prepare(given.source, given.out, rules)
        if given.show_removed:
            rows, _ = read_instructions(Path(given.source) if given.source else hub_file())
            show_removed(rows, rules, given.show_removed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
