"""An evaluation that several processes share out is that of one: same answers, same scores, same files."""

import io
import os
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from conftest import lines_of
from evaluation import arguments, write_reader_folder, write_sums
from test_distributed import run_ranks

import evaluate
from rl.distributed import rank, world_size
from rl.evaluation.records import RecordFile
from rl.run.processes import process_group

METHODS = ("vanilla", "self-refine-oracle", "pasr")
SEVERAL = ("--methods", ",".join(METHODS), "--samples", "2", "--temperature", "1", "--judge", "self")
LONG = ("--methods", "vanilla", "--max-new-tokens", "599")  # by rule alone, and more than the context of 600 has room for


class JudgeOfSums:
    """Finds every second sum right, and fails at one of them: the scores tell whose they are."""

    def __init__(self) -> None:
        self.last_failure = ""

    def submit(self, item):
        number, future = int(item.question[0]), Future()
        if number == 3:
            self.last_failure = "three is too much" if rank() == world_size() - 1 else ""
        future.set_result(None if number == 3 else float(number % 2))
        return future

    def finish(self) -> None: ...

    def close(self) -> None: ...


def command(place: Path, out: str, flags: tuple[str, ...] = SEVERAL) -> list[str]:
    files = ("--benchmarks", f"sums={place / 'sums.jsonl'}:number", "--prompts", str(place / "prompts.json"))
    return [*arguments(place, *files, *flags), "--out", str(place / out)]


def evaluate_in_two(place: Path) -> None:
    """In each of two processes, the second of which is slow."""
    append, number, answers = RecordFile.append, int(os.environ["RANK"]), Counter()

    def append_slowly(self, record) -> None:
        time.sleep(0.02 * number)
        answers[number] += 1
        append(self, record)

    RecordFile.append = append_slowly
    with process_group("cpu"):  # one for both: a quick rank would join the group that the slow one is about to leave
        code = evaluate.main(command(place, "two")) or evaluate.main(command(place, "two-long", LONG))
    print(f"answered {dict(answers)}", flush=True)
    os._exit(code)


def evaluate_and_die(place: Path) -> None:
    append = RecordFile.append

    def append_once(self, record) -> None:
        if rank() == 1 and self.records:
            os._exit(9)
        append(self, record)

    RecordFile.append = append_once
    evaluate.main(command(place, "killed"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations")
    write_reader_folder(folder / "m", max_position_embeddings=600)
    (folder / "prompts.json").write_text('{"plain": "PLAIN", "refine": "REFINE"}')
    write_sums(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "make_scorers", lambda *_, **__: {"open": JudgeOfSums()})
        assert evaluate.main(command(folder, "one")) == 0
        assert evaluate.main(command(folder, "one-long", LONG)) == 0
        yield folder


def records(place: Path, out: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (place / out / "records").iterdir()}


def test_two_processes_write_what_one_writes(place):
    """Bug guarded: answers lost, doubled or out of order, draws that depend on the process, a judge's score given to another
    answer, a failure that only one process knows of, tables printed or settings written by each process."""
    codes, output = run_ranks(2, place, 120, evaluate_in_two)
    assert codes == [0, 0], output
    assert records(place, "two") == records(place, "one")
    assert records(place, "two-long") == records(place, "one-long")
    assert "6 answers had less room than --max-new-tokens" in output
    assert sorted(records(place, "one")) == sorted(f"sums.{method}.jsonl" for method in METHODS)
    rows = lines_of(place / "two" / "records" / "sums.vanilla.jsonl")
    assert {row["scores"]["judge"] for row in rows} == {0.0, 1.0, None}
    assert len({row["turns"][0]["response"] for row in rows}) > 6, "answers that tell whose they are"
    assert output.count("sums, vanilla: no judge's score for 2 answers (three is too much)") == 1
    assert output.count("written to") == 2
    assert "answered {0: 21}" in output
    assert "answered {1: 21}" in output
    for file in ("settings.json", "table.md"):
        assert (place / "two" / file).read_text().replace("/two", "/one") == (place / "one" / file).read_text()


def test_what_a_killed_process_has_answered_is_kept(place):
    """Bug guarded: answers of a rank that are on disk only when all have ended; a folder that needs as many processes again."""
    codes, output = run_ranks(2, place, 120, evaluate_and_die)
    assert codes[1] == 9, output
    assert codes[0] != 0
    kept = lines_of(place / "killed" / "records" / "sums.vanilla.jsonl")
    assert {row["id"] for row in kept} & {"sums-1", "sums-3", "sums-5"}, "of the killed process, one answer"
    with redirect_stdout(io.StringIO()) as said:
        assert evaluate.main(command(place, "killed")) == 0
    assert f"{len(kept)} answers are there already, {12 - len(kept)} to go" in said.getvalue()
    assert records(place, "killed") == records(place, "one")


def test_only_benchmarks_are_shared_out(place, monkeypatch, capsys):
    """Bug guarded: eight processes that each answer the same question, or wait for a line at the terminal."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        evaluate.main(["--model", str(place / "m"), "--ask", "1 + 1?"])
    assert "start this without torchrun" in capsys.readouterr().out
