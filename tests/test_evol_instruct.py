"""The paper's training set as files: the cache, the manifest, the way from the hub, the command line."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import SHARED, run_command, run_here

import data.evol_instruct
from data.cleaning import CleaningRules, clean
from data.evol_instruct import DATA_FILE, HUB_FILE, HUB_ID, MANIFEST_FILE, prepare, read_instructions, sha256
from data.examples import load_examples

SAMPLE = SHARED / "open_qa" / "evol_instruct_sample.json"
needs_sample = pytest.mark.skipif(not SAMPLE.is_file(), reason="no Evol-Instruct sample in ../shared/data/open_qa")
ROWS = [
    {"instruction": f"What is the {colour} of {thing} number {n}?", "output": f"It is {n}."}
    for n, (colour, thing) in enumerate((c, t) for c in ("price", "weight") for t in ("a box", "a car", "the house"))
]


def write(path, rows):
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> list:
    """Let the hub give ROWS. Return the list of its requests."""
    calls = []
    write(tmp_path / "hub.json", ROWS)
    monkeypatch.setattr(
        data.evol_instruct, "hf_hub_download", lambda *a, **k: calls.append((a, k)) or str(tmp_path / "hub.json")
    )
    return calls


def test_texts_are_joined_and_tidied(tmp_path):
    """Bug guarded: an Alpaca-style question without its input; a lone surrogate, which UTF-8 cannot write, ends the work."""
    extras = [{"input": "It is 7."}, {"input": " "}, {"input": None}, {}]
    rows = [{"instruction": f"What is the {n}. number?", "output": "7"} | extra for n, extra in enumerate(extras)]
    questions = [row["instruction"] for row in rows]
    questions[0] += "\n\nIt is 7."
    source = write(tmp_path / "in.json", rows)
    assert [e.question for e in load_examples(source)] == questions
    assert [e.question for e in load_examples(prepare(source, tmp_path))] == questions
    write(source, [rows[0] | {"input": ["It is 7."]}])
    for read in (load_examples, read_instructions):
        with pytest.raises(ValueError, match="item 1: 'input' is no text but list"):
            read(source)
    write(source, '[{"instruction": " a\\r\\nb\\u0000\\ufeff ", "output": "broken \\ud83d emoji \\ud83d\\ude00"}]')
    example = load_examples(prepare(source, tmp_path))[0]
    assert (example.question, example.reference) == ("a\nb", "broken ? emoji 😀")


def test_the_data_and_their_manifest(tmp_path, capsys):
    """Bug guarded: ids that depend on what was removed, a manifest that counts or names something else."""
    source = write(tmp_path / "in.json", [*ROWS, ROWS[0], {"instruction": "", "output": "x"}])
    path = prepare(source, tmp_path / "out")
    assert "rows in" in capsys.readouterr().out
    examples = load_examples(path)
    assert [e.question for e in examples] == [r["instruction"] for r in ROWS]
    assert [e.id for e in examples] == [f"evol-{n:06d}" for n in range(1, 7)]
    manifest = json.loads((path.parent / MANIFEST_FILE).read_text())
    assert (manifest["source"], manifest["source_sha256"]) == ("in.json", sha256(source))
    assert (manifest["output_sha256"], manifest["rules"]) == (sha256(path), asdict(CleaningRules()))
    counts = {name: count for name, count in manifest["counts"].items() if count}
    assert counts == {"rows_in": 8, "empty": 1, "duplicate": 1, "rows_out": 6}
    assert sorted(p.name for p in path.parent.iterdir()) == [DATA_FILE, MANIFEST_FILE]


def test_the_hubs_data_are_prepared_once(tmp_path, monkeypatch, downloads):
    """Bug guarded: the wrong kind of repository or file; a folder useless without network; stale data after a change."""
    path = prepare(None, tmp_path / "out")
    assert downloads == [((HUB_ID, HUB_FILE), {"repo_type": "dataset"})]
    assert prepare(None, tmp_path / "out") == path
    assert len(downloads) == 1
    prepare(None, tmp_path / "out", CleaningRules(max_answer_chars=99))
    monkeypatch.setattr(data.evol_instruct, "VERSION", 99)
    prepare(None, tmp_path / "out", CleaningRules(max_answer_chars=99))
    assert len(downloads) == 3
    prepare(tmp_path / "hub.json", tmp_path / "out", CleaningRules(max_answer_chars=99))
    prepare(None, tmp_path / "out", CleaningRules(max_answer_chars=99))
    assert len(downloads) == 4, "those of a file are no substitute"


@pytest.mark.parametrize("damage", ["cut", "edit", "none", '{"version": 2, "ru', "", "[3]"])
def test_half_written_or_edited_output_is_made_anew(tmp_path, damage, downloads):
    """Bug guarded: what a kill left behind is taken for the whole training set."""
    path = prepare(None, tmp_path / "out")
    whole, manifest = path.read_bytes(), path.parent / MANIFEST_FILE
    if damage == "cut":
        path.write_bytes(whole[:-20])
    elif damage == "edit":
        path.write_bytes(whole.replace(b"price", b"prize"))
    elif damage == "none":
        manifest.unlink()
    else:
        manifest.write_text(damage)
    assert prepare(None, tmp_path / "out").read_bytes() == whole
    assert len(downloads) == 2


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    """Bug guarded: a full disk leaves half a file under the final name."""

    def full(path, text, **_):
        path.write_bytes(text.encode()[:10])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    (tmp_path / "in.json").write_bytes(json.dumps(ROWS).encode())
    with pytest.raises(OSError, match="no space"):
        prepare(tmp_path / "in.json", tmp_path / "out")
    assert not {DATA_FILE, MANIFEST_FILE} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"instruction": "q", "output": "a"}', "one JSON list.*found dict"),
        ('{"instruction": "q", "output": "a"}\n{"instruction": "q", "output": "a"}', "not valid JSON"),
        ('[{"instruction": "é"}]'.encode("latin-1"), "not valid JSON"),
        ('[{"instruction": "q", "output": "a"}, {"instruction": "q"}]', r"item 2: 'output' is missing.*\['instruction'\]"),
        ('["q"]', "item 1: expected a JSON object, found str"),
        ('[{"instruction": "", "output": "a"}]', "left none of the 1 rows"),
        (None, "no data file at"),
    ],
)
def test_bad_sources_are_named(tmp_path, content, message):
    """Bug guarded: an error that does not say which file or row, an empty training set found at step 1."""
    if content is not None:
        (tmp_path / "in.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "in.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_network_and_no_cache(tmp_path):
    """Bug guarded: a stack of connection errors instead of what to do, a data set cached nowhere taken for a bug."""
    script = (
        "import os, sys; os.environ['HF_HUB_CACHE'] = sys.argv.pop(1); from data.evol_instruct import main; sys.exit(main())"
    )
    result = run_command("-c", script, str(tmp_path / "cache"), "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert HUB_FILE in result.stderr
    assert "--source FILE" in result.stderr
    assert "Traceback" not in result.stderr


def test_command_line_shows_what_was_removed(tmp_path):
    """Bug guarded: the command line of the module does not run."""
    source = write(tmp_path / "in.json", [*ROWS, {"instruction": "@@@", "output": "x"}])
    command = ["-m", "data.evol_instruct", "--source", str(source), "--out", str(tmp_path / "out")]
    result = run_here(*command, "--show-removed", "2")
    assert result.returncode == 0, result.stderr
    assert "rubbish: 1 removed" in result.stdout
    assert "Q: '@@@'" in result.stdout


@needs_sample
def test_the_real_sample(tmp_path):
    """Bug guarded: thresholds that drift away from the paper's 40,000 of 70,000; results that differ between two runs."""
    path = prepare(SAMPLE, tmp_path / "a")
    assert path.read_bytes() == prepare(SAMPLE, tmp_path / "b").read_bytes()
    kept, counts = clean(read_instructions(SAMPLE)[0], CleaningRules())
    assert counts["rows_in"] == 160
    assert counts["rows_out"] == len(kept) == len(load_examples(path))
    assert 0.54 < counts["rows_out"] / 160 < 0.62
    assert counts["empty"] == 1
    tail = int(0.11 * (160 - counts["long_answer"] - counts["empty"]))
    assert counts["rare_query"] == counts["rare_phrases"] == tail == 13
    half = clean(read_instructions(SAMPLE)[0][:80], CleaningRules())[1]
    assert half["rows_out"] / 80 == pytest.approx(counts["rows_out"] / 160, abs=0.08)
