"""Evaluations as a user runs them: records, interruption, settings, judge, the command line."""

import json
from concurrent.futures import Future

import pytest
import torch
from conftest import lines_of, write_task_folder
from fault_proxy import FakeJudge as FakeServer
from fault_proxy import running
from reader import make_answerer, scripted, write_reader_folder, write_rows

import evaluate
import rl.evaluation.run
import rl.evaluation.scores
from data.benchmarks import load_benchmark, own_benchmark
from rewards.instructions import JUDGE_KINDS, benchmark_score, instruction
from rewards.judge_prompt import check_template
from rl.config import Config
from rl.evaluation.answer_records import OutputFolder, RecordFile
from rl.evaluation.judges import ASKED
from rl.evaluation.methods import METHODS
from rl.evaluation.run import run_benchmark
from rl.judges import make_scorers

SETTINGS = {
    "model": "m", "temperature": 0.0, "samples": 1, "max_new_tokens": 8, "limit": None, "seed": 0, "paper_decoding": False,
    "benchmarks": {"sums": "number"}, "data": {"sums": "x"}, "judge": None,
}  # fmt: skip


@pytest.fixture
def sums(tmp_path):
    file = write_rows(tmp_path / "sums.jsonl", [{"question": f"{i} + 1?", "answer": i + 1} for i in range(6)])
    return own_benchmark(f"sums={file}:number")


def run(benchmark, folder, method="vanilla", judges=None, **decoding):
    out = OutputFolder(folder, SETTINGS)
    try:
        items = load_benchmark(benchmark, None)
        return run_benchmark(make_answerer(**decoding), benchmark, items, METHODS[method], out, judges or {})
    finally:
        out.close()


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
    scripted(monkeypatch, lambda prompt, sample: f"Answer: {sample}")
    records = run(sums, tmp_path / "out", temperature=1.0, samples=2)
    assert [(r.id, r.sample, r.answer) for r in records] == [(f"sums-{i}", s, str(s)) for i in range(6) for s in range(2)]


def test_a_broken_line_in_the_middle_is_named(sums, tmp_path, monkeypatch):
    scripted(monkeypatch, lambda prompt, sample: "1")
    run(sums, tmp_path / "out")
    file = tmp_path / "out" / "records" / "sums.vanilla.jsonl"
    file.write_text("rubbish\n" + file.read_text())
    with pytest.raises(ValueError, match=r"sums\.vanilla\.jsonl, line 1 is no record"):
        run(sums, tmp_path / "out")


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
    with pytest.raises(ValueError, match="judge was j, is k"):
        OutputFolder(tmp_path, SETTINGS | {"judge": "k"})


class FakeJudge:
    """Scores what contains a 1; fails where told to."""

    last_failure = "it was down"

    def __init__(self, failing=()) -> None:
        self.failing, self.asked = failing, []

    def submit(self, item):
        self.asked.append(item)
        future = Future()
        future.set_result(None if item.question.startswith(self.failing) else 0.9 if "1" in item.answer else 0.4)
        return future

    def finish(self):
        pass


def test_judge_and_rule_stand_side_by_side(sums, tmp_path, monkeypatch, capsys):
    """Bug guarded: a failed score that counts as 0 or is never asked for again; a right or wrong that counts .9."""
    scripted(monkeypatch, lambda prompt, sample: "" if "5 + 1" in prompt else "Answer: 1" if "0 + 1" in prompt else "Answer: 0")
    judge = FakeJudge(failing=("2 +",))
    records = run(sums, tmp_path, judges={"open": judge})
    assert [r.scores["judge"] for r in records] == [1.0, 0.0, None, 0.0, 0.0, 0.0]
    assert [r.scores["rule"] for r in records] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert len(judge.asked) == 5, "an empty answer needs no call"
    assert "no judge's score for 1 answers (it was down)" in capsys.readouterr().out
    again = FakeJudge()
    records = run(sums, tmp_path, judges={"open": again})
    assert [item.question[:5] for item in again.asked] == ["2 + 1"]
    assert records[2].scores["judge"] == 0.0


def test_a_judge_can_be_added_later(sums, tmp_path, monkeypatch):
    calls = scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    run(sums, tmp_path)
    records = run(sums, tmp_path, judges={"open": FakeJudge()})
    assert len(calls) == 1
    assert all(record.scores["judge"] == 1.0 for record in records)


def test_judge_reads_the_answer_that_counts(tmp_path, sums, monkeypatch):
    """Bug guarded: a judge that is shown the thinking, or "The solution is right." in place of the solution."""
    said = "<think>9</think>Answer: 1"
    scripted(monkeypatch, lambda prompt, sample: "The solution is right." if "step by step" in prompt else said)
    judge = FakeJudge()
    run(sums, tmp_path, method="self-refine", judges={"open": judge})
    assert {item.answer for item in judge.asked} == {"Answer: 1"}


@pytest.mark.parametrize("kind", JUDGE_KINDS)
@pytest.mark.parametrize("digit", [True, False])
def test_instructions_can_be_filled_in(kind, digit):
    text = instruction(kind, digit=digit)
    check_template(text)
    assert ("to 9" in text or "9 if" in text) == digit
    assert text.index("{question}") < text.index("{reference}") < text.index("{answer}")


def test_summaries_keep_degrees():
    assert [benchmark_score("summary", 0.4), benchmark_score("open", 0.4), benchmark_score("choice", 0.5)] == [0.4, 0.0, 1.0]
    assert benchmark_score("open", None) is None


def test_the_model_itself_can_judge(tmp_path, capsys):
    """Bug guarded: in-process judges that are built for training's prompt alone."""
    from rl.evaluation.loading import load_for_asking

    loaded = load_for_asking(str(write_reader_folder(tmp_path / "m")), revision=None, prompts=None, device="cpu")
    own, cpu = (loaded.model, loaded.tokenizer), torch.device("cpu")
    judges = make_scorers(Config(judge="self", runs_dir=str(tmp_path)), ASKED, own, cpu, tried="open")
    assert set(judges) == set(JUDGE_KINDS)
    assert "WARNING" in capsys.readouterr().out  # a random model cannot judge, and is said not to
    assert make_scorers(Config(judge="rules"), ASKED, None, cpu, tried="open") == {}


def arguments(tmp_path, *more: str) -> list[str]:
    return ["--model", str(tmp_path / "m"), "--max-new-tokens", "8", "--out", str(tmp_path / "out"), *more]


def test_the_whole_command(tmp_path, capsys):
    """The command as a user types it, on a random model that can read: vanilla, a review and the refine prompt; twice."""
    write_reader_folder(tmp_path / "m")
    sums = write_rows(tmp_path / "sums.jsonl", [{"question": f"{i} + 1?", "answer": i + 1} for i in range(4)])
    pick = write_rows(tmp_path / "pick.jsonl", [{"question": f"Which?\nA: {i}\nB: x", "answer": "B"} for i in range(3)])
    flags = arguments(
        tmp_path, "--benchmarks", f"sums={sums}:number,pick={pick}:choice", "--methods", "vanilla,self-refine,pasr-prompt",
        "--limit", "2", "--temperature", "1", "--samples", "2", "--judge", "self",
    )  # fmt: skip
    assert evaluate.main(flags) == 0
    shown = capsys.readouterr().out
    assert "scored by rule" in shown
    assert "scored by the judge" in shown
    assert "pass@2" in shown
    assert "maj@2" in shown
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
    assert evaluate.main(arguments(tmp_path, *flags)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "could not be asked (score 0; all of them: no number): mixed 1 of 2, words 1 of 1" in shown
    assert "tokenizer has no token for" in shown
    cells = json.loads((tmp_path / "out" / "table.json").read_text())["rows"][0]["cells"]
    assert cells["words"]["accuracy"] is None
    assert cells["mixed"]["accuracy"] is not None


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_reader_folder(tmp_path / "m")
    sums = f"sums={write_rows(tmp_path / 's.jsonl', [{'question': 'q', 'answer': 1}])}:number"
    for flags, problem in [
        (["--benchmarks", "gsm8k"], "openai/gsm8k"),
        (["--benchmarks", "gsm8k", "--data-dir", str(tmp_path)], "gsm8k/test.jsonl"),
        (["--benchmarks", sums, "--samples", "2"], "--temperature above 0"),
        (["--benchmarks", sums, "--limit", "0"], "--limit"),
        (["--benchmarks", sums, "--methods", "magic"], "no method is called 'magic'"),
        (["--benchmarks", sums, "--paper-decoding", "--temperature", "1"], "--paper-decoding sets the temperatures"),
        (["--benchmarks", sums, "--compare", "paper"], "none of the paper's models"),
        (["--benchmarks", sums, "--judge", "http://localhost:1/v1"], "--judge-model"),
    ]:  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            evaluate.main(arguments(tmp_path, *flags))
        said = capsys.readouterr().out.strip().splitlines()[-1]
        assert ended.value.code == 2
        assert said.startswith("error: ")
        assert problem in said
    for flags, problem in [
        ([], "--model is missing"), (["--diff", str(tmp_path), str(tmp_path)], "holds no evaluation"),
        (["--table", str(tmp_path)], "holds no evaluation"),
    ]:  # fmt: skip
        with pytest.raises(SystemExit):
            evaluate.main(flags)
        assert problem in capsys.readouterr().out


def test_answers_that_other_rules_have_scored_are_scored_anew(sums, tmp_path, monkeypatch, capsys):
    """Bug guarded: a rule is changed, and half of a table is still by the old one; or every answer is drawn again for it."""
    scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    judge = FakeJudge()
    assert [r.scores["rule"] for r in run(sums, tmp_path / "out", judges={"open": judge})] == [1.0] + [0.0] * 5
    judged = [r.scores["judge"] for r in run(sums, tmp_path / "out")]
    for module in (rl.evaluation.run, rl.evaluation.scores):
        monkeypatch.setattr(module, "rules_version", lambda: "later")
    assert evaluate.main(["--table", str(tmp_path / "out")]) == 0
    assert "scored by other rules than today's (evaluate again): sums 6" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(rl.evaluation.run, "score_benchmark", lambda *_: ("one", 0.5))
    scripted(monkeypatch, lambda prompt, sample: pytest.fail("drawn again"))
    records = run(sums, tmp_path / "out")
    assert [(r.answer, r.scores["rule"], r.rules) for r in records] == [("one", 0.5, "later")] * 6
    assert [r.scores["judge"] for r in records] == judged
    assert "6 answers that are there already are scored anew" in capsys.readouterr().out
    run(sums, tmp_path / "out")
    assert "scored anew" not in capsys.readouterr().out, "once"


def test_answers_to_strange_questions_are_named(sums, tmp_path, monkeypatch):
    """Bug guarded: a record that somebody edited ends in a KeyError."""
    scripted(monkeypatch, lambda prompt, sample: "Answer: 1")
    run(sums, tmp_path / "out")
    file = tmp_path / "out" / "records" / "sums.vanilla.jsonl"
    file.write_text(file.read_text().replace('"sums-3"', '"sums-33"'))
    with pytest.raises(ValueError, match="has answers to 'sums-33'"):
        run(sums, tmp_path / "out")


def test_help_lists_the_modes(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    shown = capsys.readouterr().out
    for flag in ("--ask", "--benchmarks", "--methods", "--data-dir", "--limit", "--judge", "--samples", "--diff", "--compare"):
        assert flag in shown


def test_record_file_keeps_the_order_of_questions(tmp_path):
    from rl.evaluation.answer_records import AnswerRecord

    (tmp_path / "records").mkdir()
    file = RecordFile(tmp_path, "b", "vanilla")
    for id in ("b-10", "b-2", "b-1"):
        file.append(AnswerRecord("b", "vanilla", id, 0, "q", "r", [], None, 0, 0))
    file.rewrite(["b-1", "b-2", "b-10"])
    assert [row["id"] for row in lines_of(file.path)] == ["b-1", "b-2", "b-10"]


def test_a_server_judges_each_kind_with_its_instruction(tmp_path, capsys):
    """Bug guarded: one prompt for all kinds; a judge behind a server that is asked as an in-process one."""
    write_reader_folder(tmp_path / "m")
    files = [
        write_rows(tmp_path / f"{kind}.jsonl", [{"question": f"{kind}?\nA: x\nB: y", "answer": "B"}])
        for kind in ("exact", "choice", "summary")
    ]
    names = ",".join(f"my-{file.stem}={file}:{file.stem}" for file in files)
    judge = FakeServer(lambda prompt: "0.3" if "summary" in prompt and "Article" in prompt else "1")
    with running(judge):
        flags = ["--benchmarks", names, "--methods", "vanilla", "--judge", judge.url, "--judge-model", "some"]
        assert evaluate.main(arguments(tmp_path, *flags)) == 0
    cells = json.loads((tmp_path / "out" / "table.json").read_text())["rows"][0]["cells"]
    assert {name: cell["judge"] for name, cell in cells.items()} == {"my-exact": 1.0, "my-choice": 1.0, "my-summary": 0.3}
    prompts = [prompt for prompt in judge.asked if "A: x" in prompt]
    assert sum("picks the right option" in prompt for prompt in prompts) == 1
    assert all("digit" not in prompt for prompt in prompts)
    assert (tmp_path / "out" / "judge_cache.jsonl").exists()
