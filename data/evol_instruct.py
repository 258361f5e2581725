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
from dataclasses import asdict, fields
from pathlib import Path

from huggingface_hub import hf_hub_download

from data.cleaning import REASONS, TERMS, CleaningRules, apply_rules, clean, count_table, rare_terms
from data.examples import Example, download_error, join_input

HUB_ID = "WizardLMTeam/WizardLM_evol_instruct_70k"
HUB_FILE = "alpaca_evol_instruct_70k.json"  # the only data file of that repository
DATA_FILE, MANIFEST_FILE = "evol_instruct.jsonl", "evol_instruct.manifest.json"
VERSION = 2  # of the cleaning; raise it when the same thresholds would give other rows, so that a cached result is made anew


def prepare(source: str | Path | None, folder: Path, rules: CleaningRules = CleaningRules()) -> Path:  # noqa: B008 - frozen
    """Clean the training set into `folder`, unless it is there already, print what was done, and return the JSONL's path.

    Args:
        source: a file holding one JSON list of {instruction, output}; None for the hub's data set. A folder that was prepared
            from the hub is used again without a request to the hub, so it works offline.
        folder: where the JSONL and its manifest go; made if absent.

    Raises:
        ValueError: the source cannot be had or read, a row lacks instruction or output, or no row is left.
    """
    # what is there already, if it was made in the same way
    folder = Path(folder)
    path, setting = folder / DATA_FILE, {"version": VERSION, "rules": asdict(rules)}
    found = _read_manifest(folder)
    if found and not setting.items() <= found.items():
        found = None
    if found and source is None and found["source"]["name"] == HUB_ID:
        return _reuse(path, found)

    # the rows, which show whether the source is still the same
    file = hub_file() if source is None else Path(source)
    rows, digest = read_instructions(file)
    setting["source"] = {"name": HUB_ID if source is None else file.name, "sha256": digest}
    if found and found["source"] == setting["source"]:
        return _reuse(path, found)

    # clean and write; the manifest comes last because it vouches for the data
    kept, counts = clean(rows, rules)
    print(count_table(counts))
    if not kept:
        raise ValueError(f"cleaning left none of the {len(rows)} rows of {file}; loosen the rules\n{count_table(counts)}")
    folder.mkdir(parents=True, exist_ok=True)
    records = ({"question": row.question, "answer": row.reference, "id": row.id} for row in kept)
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    manifest = setting | {"counts": counts, "output": {"name": path.name, "sha256": sha256(path)}}
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

    Ids are positions in the list. Empty texts pass, because the published set has some and the cleaning removes them. A row
    without instruction or output is a ValueError that names it.
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
    examples = []
    for number, row in enumerate(rows, start=1):
        where = f"{file}, item {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
        for key in ("instruction", "output"):
            if not isinstance(row.get(key), str):
                raise ValueError(f"{where}: {key!r} is missing or not a text; found {sorted(row)}")
        examples.append(Example(f"evol-{number:06d}", join_input(row, where), row["output"]))
    return examples, hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict | None:
    """Return the manifest of a folder, if it can be read and the data beside it have its digest."""
    path, manifest_file = folder / DATA_FILE, folder / MANIFEST_FILE
    if not path.is_file() or not manifest_file.is_file():
        return None
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        if manifest["output"]["sha256"] == sha256(path) and {"source", "rules", "version", "counts"} <= set(manifest):
            return manifest
        print(f"{path} is not what its manifest vouches for; the data are prepared again")
    except (ValueError, KeyError, TypeError) as error:
        print(f"{manifest_file} cannot be read ({error!r}); the data are prepared again")
    return None


def _reuse(path: Path, manifest: dict) -> Path:
    print(f"{path} is up to date: {manifest['counts']['rows_out']:,} of {manifest['counts']['rows_in']:,} rows")
    return path


def _write(path: Path, text: str) -> None:
    """Write under a temporary name of this process, then rename: a reader finds the whole file or none."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def show_removed(rows: list[Example], rules: CleaningRules, number: int) -> None:
    """Print the first rows that each rule removed; for the frequency rules also the rare terms in them."""
    rows, reasons = apply_rules(rows, rules)
    for reason in REASONS:
        print(f"\n{reason}: {reasons.count(reason)} removed")
        rare = {}
        if reason in TERMS:
            present = [row for row, r in zip(rows, reasons, strict=True) if not r or r in TERMS]
            terms = rare_terms([TERMS[reason](row.question) for row in present], rules)
            rare = {row.id: sorted(rare) for row, rare in zip(present, terms, strict=True)}
        for row in [row for row, r in zip(rows, reasons, strict=True) if r == reason][:number]:
            question, answer = (" ".join(text.split()) for text in (row.question, row.reference))
            print(f"  {row.id}  Q: {question[:160]!r}\n{'':15}A: {answer[:80]!r} ({len(row.reference)} characters)")
            if rare:
                few = ", ".join(term if isinstance(term, str) else " ".join(term) for term in rare[row.id][:8])
                print(f"{'':15}{len(rare[row.id])} rare: {few}")


HELP = {
    "max_answer_chars": "rule 1: longest reference answer",
    "min_alnum_share": "rule 2: least share of letters and digits",
    "short_text_chars": "rule 2: shorter texts need only one letter or digit",
    "rare_below": "rule 3: a word is rare if a smaller share of the other questions uses it",
    "prior_words": "rule 3: words of average rarity that each question is averaged with",
    "rare_query_share": "rule 3: share of questions dropped for rare words",
    "rare_phrase_share": "rule 3: share of questions dropped for rare pairs of words",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; every threshold has a flag."""
    parser = argparse.ArgumentParser(description="Prepare the paper's training set.", allow_abbrev=False)
    parser.add_argument("--source", help=f"a JSON list of {{instruction, output}}; default: {HUB_ID} from the hub")
    parser.add_argument("--out", type=Path, default="runs/data", help="folder of the result (default: %(default)s)")
    parser.add_argument("--show-removed", type=int, default=0, metavar="N", help="print N rows that each rule removed")
    for field in fields(CleaningRules):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=field.type, default=field.default, help=f"{HELP[field.name]} (default: %(default)s)")
    options = vars(parser.parse_args(argv))
    source, out, number = (options.pop(name) for name in ("source", "out", "show_removed"))
    try:
        rules = CleaningRules(**options)
        prepare(source, out, rules)
        if number:
            rows, _ = read_instructions(Path(source) if source else hub_file())
            show_removed(rows, rules, number)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
