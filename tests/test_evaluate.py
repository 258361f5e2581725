"""Evaluations as a user runs them: records, interruption, settings, judge, the command line."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, lines_of, write_task_folder
from evaluation import SETTINGS, arguments, make_answerer, run, scripted, write_reader_folder, write_rows, write_sums

import evaluate
from data.benchmarks import own_benchmark
from rl.evaluation.records import OutputFolder


@pytest.fixture
def sums(tmp_path):
    return write_sums(tmp_path)


def test_an_interrupted_evaluation_goes_on(sums, tmp_path, monkeypatch, capsys):
    """Bug guarded: answers lost or asked twice after a kill, a half-written line taken for a record or for the end."""
    scripted(monkeypatch, lambda prompt, sample: None if "4 + 1" in prompt else "Answer: 1")
    with pytest.raises(KeyboardInterrupt):
        run(sums, tmp_path / "out")
    file = tmp_path / "out" / "records" / "sums.vanilla.jsonl"
    assert len(lines_of(file)) == 4
    with file.open("a") as stream:
        stream.write('{"benchmark": "sums", "meth')
    calls = scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    records = run(sums, tmp_path / "out")
    assert [len(call) for call in calls] == [2]
    assert "cut off" in capsys.readouterr().out
    scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    assert records == run(sums, tmp_path / "whole")
    assert file.read_bytes() == (tmp_path / "whole" / "records" / "sums.vanilla.jsonl").read_bytes()


def test_missing_samples_of_a_question_are_drawn(sums, tmp_path, monkeypatch):
    """Bug guarded: a question with one of its two samples on disk taken for done, or its first sample written twice."""
    scripted(monkeypatch, lambda prompt, sample: None if "2 + 1" in prompt and sample else f"Answer: {sample}")
    with pytest.raises(KeyboardInterrupt):
        run(sums, tmp_path / "out", temperature=1.0, samples=2)
    scripted(monkeypatch, lambda prompt, sample: f"Answer: {sample + 7}")
    records = run(sums, tmp_path / "out", temperature=1.0, samples=2)
    drawn = {(r.id, r.sample): r.answer for r in records}
    assert list(drawn) == [(f"sums-{i}", s) for i in range(6) for s in range(2)]
    kept = [drawn[f"sums-{i}", s] for i, s in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
    assert kept == ["0", "1", "0", "1", "0"], "what is there is not drawn over"
    assert list(drawn.values())[5:] == ["8"] + ["7", "8"] * 3


def test_other_settings_are_refused(tmp_path):
    """Bug guarded: greedy and sampled answers, or answers to other questions, in one table."""
    OutputFolder(tmp_path, SETTINGS).close()
    for change, problem in [
        ({"temperature": 1.0}, "temperature was 0.0, is 1.0"), ({"model": "n"}, "model was m, is n"),
        ({"data": {"sums": "y"}}, "data of sums was x, is y"), ({"benchmarks": {"sums": "math"}}, "benchmarks of sums"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"{problem}.*another --out"):
            OutputFolder(tmp_path, SETTINGS | change)
    more = OutputFolder(tmp_path, SETTINGS | {"benchmarks": {"new": "math"}, "data": {"new": "z"}, "judge": "j"})
    assert more.settings["benchmarks"] == {"sums": "number", "new": "math"}
    with pytest.raises(ValueError, match="another process"):
        OutputFolder(tmp_path, SETTINGS)
    more.close()
    assert OutputFolder(tmp_path, SETTINGS).settings["judge"] == "j", "remembered through a run without one"
    with pytest.raises(ValueError, match="judge was j, is k"):
        OutputFolder(tmp_path, SETTINGS | {"judge": "k"})


def test_the_whole_command(tmp_path, capsys):
    """The command as a user types it, on a random model that can read: vanilla, a review and the refine prompt; twice."""
    write_reader_folder(tmp_path / "m")
    sums = write_sums(tmp_path, 4).file
    pick = write_rows(tmp_path / "pick.jsonl", [{"question": f"Which?\nA: {i}\nB: x", "answer": "B"} for i in range(3)])
    flags = arguments(
        tmp_path, "--benchmarks", f"sums={sums}:number,pick={pick}:choice", "--methods", "pasr-prompt, self-refine,vanilla",
        "--limit", "2", "--temperature", "1", "--samples", "2", "--judge", "self",
    )  # fmt: skip
    assert evaluate.main(flags) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("scored by rule", "scored by the judge", "pass@2", "maj@2", "WARNING"))
    assert "pass@1" not in shown, "it is the accuracy"
    assert all(len(line) <= 100 for line in shown[shown.index("accuracy in %") :].splitlines() if str(tmp_path) not in line)
    files = {file.name for file in (tmp_path / "out" / "records").iterdir()}
    assert files == {f"{b}.{m}.jsonl" for b in ("sums", "pick") for m in ("vanilla", "self-refine", "pasr-prompt")}
    before = (tmp_path / "out" / "table.json").read_text()
    table = json.loads(before)
    assert [row["method"] for row in table["rows"]] == ["vanilla", "self-refine", "pasr-prompt"]
    assert all(cell["questions"] == 2 and cell["samples"] == 2 for row in table["rows"] for cell in row["cells"].values())
    assert evaluate.main(flags) == 0
    assert (tmp_path / "out" / "table.json").read_text() == before
    capsys.readouterr()
    assert evaluate.main(["--diff", f"{tmp_path}/out:vanilla", f"{tmp_path}/out:pasr-prompt"]) == 0
    assert "vanilla -> PASR(+prompt)" in capsys.readouterr().out
    assert evaluate.main(["--table", f"{tmp_path}/out", f"{tmp_path}/out"]) == 0
    assert "B PASR(+prompt)" in capsys.readouterr().out


def test_questions_that_cannot_be_read_are_counted(tmp_path, capsys):
    """Bug guarded: an evaluation that dies of one question, or leaves it out of the mean without a word."""
    write_task_folder(tmp_path / "m")
    rows = [{"question": "12/5", "answer": 2}, {"question": "What is twelve by five?", "answer": 2}]
    mixed = write_rows(tmp_path / "mixed.jsonl", rows)
    words = write_rows(tmp_path / "words.jsonl", rows[1:])
    flags = ["--benchmarks", f"mixed={mixed}:number,words={words}:number", "--methods", "vanilla"]
    for _ in range(2):  # the second time from the records
        assert evaluate.main(arguments(tmp_path, *flags)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "scored anew" not in shown
    assert "could not be asked (score 0; all of them: no number): mixed 1 of 2 (the tokenizer of this model cannot" in shown
    assert ", words 1 of 1 (the tokenizer of" in shown
    cells = json.loads((tmp_path / "out" / "table.json").read_text())["rows"][0]["cells"]
    assert cells["words"]["accuracy"] is None
    assert cells["mixed"]["accuracy"] is not None


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_reader_folder(tmp_path / "m")
    sums = f"sums={write_rows(tmp_path / 's.jsonl', [{'question': 'q', 'answer': 1}])}:number"
    cases = [
        ([], "--model is missing"), (["--diff", str(tmp_path), str(tmp_path)], "holds no evaluation"),
        (["--table", str(tmp_path)], "holds no evaluation"),
    ]  # fmt: skip
    for flags, problem in [
        (["--benchmarks", "gsm8k"], "openai/gsm8k"),
        (["--benchmarks", "gsm8k", "--data-dir", str(tmp_path)], "gsm8k/test.jsonl"),
        (["--benchmarks", sums, "--samples", "2"], "--temperature above 0"),
        (["--benchmarks", sums, "--limit", "0"], "--limit"),
        (["--benchmarks", sums, "--methods", "magic"], "no method is called 'magic'"),
        (["--benchmarks", sums, "--methods", " ,"], "no method is named"),
        (["--benchmarks", sums, "--paper-decoding", "--temperature", "1"], "--paper-decoding sets the temperatures"),
        (["--benchmarks", sums, "--compare", "paper"], "none of the paper's models"),
        (["--benchmarks", sums, "--judge", "http://localhost:1/v1"], "--judge-model"),
    ]:  # fmt: skip
        cases.append((arguments(tmp_path, *flags), problem))
    for flags, problem in cases:
        with pytest.raises(SystemExit) as ended:
            evaluate.main(flags)
        said = capsys.readouterr().out.strip().splitlines()[-1]
        assert ended.value.code == 2
        assert said.startswith("error: ")
        assert problem in said


def test_a_reader_that_has_seen_enough(sums, tmp_path, monkeypatch):
    """Bug guarded: a traceback of BrokenPipeError behind `evaluate.py ... | head`."""
    scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    run(sums, tmp_path / "out")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(ROOT / "evaluate.py"), "--table", str(tmp_path / "out")]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_answers_to_strange_questions_are_named(sums, tmp_path, monkeypatch):
    """Bug guarded: a record that somebody edited ends in a KeyError."""
    scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    run(sums, tmp_path / "out")
    file = tmp_path / "out" / "records" / "sums.vanilla.jsonl"
    file.write_text(file.read_text().replace('"sums-3"', '"sums-33"'))
    for _ in range(2):
        with pytest.raises(ValueError, match="has answers to 'sums-33'"):
            run(sums, tmp_path / "out")
        monkeypatch.setattr("rl.evaluation.run.rules_version", lambda: "later")


def test_answers_with_less_room_are_told_once(sums, tmp_path, monkeypatch, capsys):
    """Bug guarded: a context that is overrun by a token; the answers of one benchmark told of every later one."""
    calls = scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    prompt = len(make_answerer().renderer.ids("0 + 1?", "plain"))
    for _ in range(2):
        run(sums, tmp_path / "out", context=prompt + 9)
    assert {request.max_new_tokens for call in calls for request in call} == {9}
    assert capsys.readouterr().out.count("6 answers had less room than --max-new-tokens") == 1


def test_half_right_readings(tmp_path, monkeypatch):
    """Bug guarded: F1 kept as the exact match; an answer that counts as right, one half, sent back by the oracle."""
    scripted(monkeypatch, lambda prompt, sample: "Answer: Tamil, Tamil")
    file = write_rows(tmp_path / "read.jsonl", [{"question": "which?", "answer": "Tamil and Telugu"}])
    drop = own_benchmark(f"read={file}:drop")
    (record,) = run(drop, tmp_path / "out", method="self-refine-oracle")
    assert (record.scores["rule"], record.scores["exact"], len(record.turns)) == (0.5, 0.0, 1)


def test_without_out_another_evaluation_gets_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    """Bug guarded: a second command that is refused for the sake of a first try; one that goes on in the wrong folder."""
    monkeypatch.chdir(tmp_path)
    write_reader_folder(tmp_path / "m")
    sums = write_sums(tmp_path, 3).file
    flags = ["--model", "m", "--benchmarks", f"sums={sums}:number", "--methods", "vanilla", "--max-new-tokens", "2"]
    for more, folder in (([], "m"), (["--limit", "2"], "m-2"), ([], "m"), (["--limit", "2"], "m-2")):
        assert evaluate.main([*flags, *more]) == 0
        assert f"written to runs/evaluations/{folder}:" in capsys.readouterr().out
