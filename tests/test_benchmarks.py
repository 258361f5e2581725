"""The ten benchmarks as released, as on the hub, and a file of one's own."""

import json
import re

import pytest
from conftest import SHARED
from samples import fake_hub

from data.benchmarks import BENCHMARKS, digest, find_options, load_benchmark, parse_benchmarks
from rewards.accuracy import RULES, score_benchmark

RELEASED = SHARED / "benchmarks"
needs_files = pytest.mark.skipif(not RELEASED.is_dir(), reason="no benchmark samples in ../shared/data/benchmarks")
FIRST_REFERENCE = {
    "gsm8k": "3", "math500": "13", "aime24": "204", "arc": "B: expense", "gpqa": "C: 10^-4 eV", "winogrande": "2: Jessica",
    "commonsenseqa": "D: music room", "drop": "Andre Johnson", "mmlu": "D: Spain",
}  # fmt: skip


@needs_files
@pytest.mark.parametrize("name", BENCHMARKS)
def test_released_files_are_read(name):
    """Bug guarded: a key of one file looked for in another; and a reference that its own rule would not score as right."""
    items = load_benchmark(BENCHMARKS[name], RELEASED)
    assert "Think step by step before answering" not in items[0].question, "GPQA's own instruction beside ours"
    assert len({item.id for item in items}) == len(items) >= 15
    assert items[0].reference == FIRST_REFERENCE.get(name, items[0].reference)
    kind, instruction = BENCHMARKS[name].kind, BENCHMARKS[name].instruction
    stands = str.startswith if kind == "summary" else str.endswith  # in front of an article, behind a question
    assert all(stands(item.question, instruction) for item in items)
    for item in items:
        assert (kind == "choice") == bool(item.options)
        assert score_benchmark(kind, f"Answer: {item.references[0]}", item.references, item.options)[1] == pytest.approx(
            1.0, abs=0.2 if kind == "summary" else 0.0
        ), item


def own_file(path, rows, kind="number"):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_benchmarks(f"mine={path}:{kind}")[0]


def test_limit_is_drawn_by_seed_and_nested(tmp_path):
    """Bug guarded: `--limit` that takes the head of a sorted file, or another sample each time; numbers that are no answer."""
    own = own_file(tmp_path / "own.jsonl", [{"question": f"{i}?", "answer": 2 * i} for i in range(50)])
    items = load_benchmark(own, None)
    assert (items[3].id, items[3].question, items[3].references) == ("mine-3", "3?", ("6",))
    few, more = ({item.id for item in load_benchmark(own, None, limit=n, seed=3)} for n in (5, 20))
    assert few < more
    assert few == {item.id for item in load_benchmark(own, None, limit=5, seed=3)}
    assert few != {item.id for item in load_benchmark(own, None, limit=5, seed=4)}
    assert few != {f"mine-{i}" for i in range(5)}


BROKEN = [
    ("gsm8k", {"question": "q"}, "'answer' is missing"),
    ("gsm8k", {"question": "q", "answer": "72"}, "####"),
    ("gsm8k", {"question": " ", "answer": "#### 72"}, "'question' is empty"),
    ("math500", {"question": "q", "answer": ["1"]}, "'answer' is no text but list"),
    ("aime24", {"problem": "q", "solution": "204"}, "'solution' holds no"),
    ("aime24", {"question": "q", "solution": "\\boxed{5}"}, "'problem' is missing"),
    ("arc", {"question": "q\nA: a\nB: b", "answer": "C"}, "'answer' is 'C', which is none of the options A, B"),
    ("arc", {"question": "q", "answer": "C"}, "no options"),
    ("mmlu", {"question": "q", "answer": "C"}, "'Question' is missing"),
    ("mmlu", {"Question": "q\nA. a\nB. b", "Ground_truth": None}, "'Ground_truth' is missing"),
    ("drop", {"question": "q", "answer": "5"}, "'ref_text' is missing"),
    ("drop", {"question": "q", "ref_text": "|"}, "'ref_text' holds no answer"),
    ("xsum", {"id": 1, "question": "q"}, "'answer' is missing"),
    ("winogrande", 1, "expected a JSON object, found int"),
]


@pytest.mark.parametrize(("name", "row", "problem"), BROKEN)
def test_a_malformed_row_is_named(name, row, problem, tmp_path):
    """Bug guarded: a KeyError, or a row that is skipped without a word."""
    benchmark = BENCHMARKS[name]
    file = tmp_path / benchmark.file
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}, line 1.*{re.escape(problem)}"):
        load_benchmark(benchmark, tmp_path)


def test_a_missing_or_broken_file_is_named(tmp_path):
    """Bug guarded: an evaluation of no questions, an error that does not say which file."""
    with pytest.raises(ValueError, match=r"gsm8k/test\.jsonl"):
        load_benchmark(BENCHMARKS["gsm8k"], tmp_path)
    own = own_file(tmp_path / "own.jsonl", [])
    cut, latin = b'{"question": "q", "answer": "1"}\n{"question": "q", "ans', b'{"question": "\xff"}'
    for content, problem in ((b"", "no questions of mine"), (cut, "line 2: not valid JSON"), (latin, "UTF-8")):
        (tmp_path / "own.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=problem):
            load_benchmark(own, None)


def test_names_on_the_command_line():
    """Bug guarded: a misspelt name that is left out, a file of one's own that hides a benchmark, a kind without a rule."""
    assert [b.name for b in parse_benchmarks("gsm8k, math500")] == ["gsm8k", "math500"]
    assert len(parse_benchmarks("all")) == 10
    for text, problem in [
        ("gsm9k", "no benchmark is called 'gsm9k'"), ("", "no benchmark is named"), ("gsm8k,all", "given twice: gsm8k"),
        ("mine=a.jsonl", "name=FILE:KIND"), ("mine=a.jsonl:poem", "name=FILE:KIND"), ("gsm8k=a.jsonl:math", "taken"),
        ("a/b=a.jsonl:math", "cannot name"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            parse_benchmarks(text)
    assert all(b.kind in RULES for b in BENCHMARKS.values())


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("q\nA: x\nB: y", (("A", "x"), ("B", "y"))),
        ("q\nA) x\n\nB) y\nstill y", (("A", "x"), ("B", "y\nstill y"))),
        ("q\na) p\nb) q\n\nA) b\nB) a", (("A", "b"), ("B", "a"))),
        ("1. x\n2. y", (("1", "x"), ("2", "y"))),
        ("q\nOption1: x\nOption2: y", (("1", "x"), ("2", "y"))),
        ("A. B. Smith wrote it\nA. x\nB. y\nC. z", (("A", "x"), ("B", "y"), ("C", "z"))),
        ("no options", ()),
        ("A: only one", ()),
    ],
)
def test_options_are_found(question, options):
    """Bug guarded: the last list of a question that has two, options of several lines, labels that are numbers."""
    assert find_options(question) == options


HUB_ROWS = {
    "gsm8k": ({"question": "q", "answer": "so\n#### 1,200"}, "1,200"),
    "math500": ({"problem": "q", "solution": "s", "answer": "\\frac12"}, "\\frac12"),
    "aime24": ({"id": 1, "problem": "q", "answer": "33"}, "33"),
    "arc": ({"question": "q", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answerKey": "2"}, "2: y"),
    "gpqa": ({"Question": "q", "Correct Answer": "x"} | {f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}, ": x"),
    "winogrande": ({"sentence": "the _ is", "option1": "x", "option2": "y", "answer": "2"}, "2: y"),
    "commonsenseqa": ({"question": "q", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "A"}, "A: x"),
    "drop": ({"passage": "p", "question": "q", "answers_spans": {"spans": ["x", "y"], "types": ["span"] * 2}}, "x | y"),
    "mmlu": ({"question": "q", "choices": ["x", "y", "z", "w"], "answer": 2}, "C: z"),
    "xsum": ({"document": "d", "summary": "s", "id": "7"}, "s"),
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_hub_rows_are_read(name, tmp_path, monkeypatch):
    """Bug guarded: a hub path that works up to its first row; the last choice taken for -1. The download is one row."""
    row, reference = HUB_ROWS[name]
    requests = fake_hub(monkeypatch, tmp_path, rows := [row])
    (item,) = load_benchmark(BENCHMARKS[name], None)
    assert item.reference.endswith(reference)
    hub = BENCHMARKS[name].hub
    assert requests == [(hub.repository, f"{hub.config}/{hub.split}/*.parquet", "dataset", "refs/convert/parquet")]
    rows[0] = {"wrong": 1}
    with pytest.raises(ValueError, match=r"row 0: .* is missing"):
        load_benchmark(BENCHMARKS[name], None)
    for answer in (4, -1, "C") if name == "mmlu" else ():  # beyond the choices, and no label of them
        rows[0] = row | {"answer": answer}
        with pytest.raises(ValueError, match=f"is {answer}, which is no index of the 4 choices"):
            load_benchmark(BENCHMARKS[name], None)


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    """Bug guarded: a stack of connection errors, or an error of pyarrow, instead of what to do."""

    def refuse(*_, **__):
        raise ConnectionError("Network is unreachable")

    fake_hub(monkeypatch, tmp_path, [])
    with pytest.raises(ValueError, match="no such configuration or split"):
        load_benchmark(BENCHMARKS["gsm8k"], None)
    (tmp_path / "main" / "test" / "0000.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="no readable Parquet"):
        load_benchmark(BENCHMARKS["gsm8k"], None)
    monkeypatch.setattr("data.examples.snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"openai/gsm8k .* could not be downloaded: Network is unreachable.*--data-dir"):
        load_benchmark(BENCHMARKS["gsm8k"], None)


def test_digest_tells_data_apart(tmp_path):
    """Bug guarded: two evaluations of different answers taken for the same."""
    one, two = (load_benchmark(own_file(tmp_path / f"{n}.jsonl", [{"question": "q", "answer": n}]), None) for n in (1, 2))
    assert digest(one) == digest(one) != digest(two)
