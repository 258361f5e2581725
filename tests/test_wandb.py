"""The wandb mirror, read back from the files of offline runs."""

import json
import struct
import time
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

import rl.run.wandb
from rl.config import parse_config
from rl.records import Completion, Group, Sample
from rl.run.folder import RunFolder, rollout_record
from rl.run.wandb import TABLE_COLUMNS, group_name, table_rows

BLOCK, HEADER = 32 * 1024, struct.Struct("<IHB")  # of the LevelDB log that a .wandb file is: crc, length, kind
FIRST_AND_ONLY, LAST = 1, 4


def read_records(file: Path) -> list[Record]:
    """Read the records of a .wandb file."""
    content, position, records, pieces = file.read_bytes(), 7, [], []  # 7: the file's own header
    while position + HEADER.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:  # filled up with zeros
            position += left
            continue
        _, length, kind = HEADER.unpack_from(content, position)
        pieces.append(content[position + HEADER.size : position + HEADER.size + length])
        position += HEADER.size + length
        if kind in (FIRST_AND_ONLY, LAST):
            records.append(Record.FromString(b"".join(pieces)))
            pieces = []
    return records


def finished_records(file: Path, seconds: float = 20.0) -> list[Record]:
    """Read them once wandb's service, a process of its own, has written the last."""
    end = time.monotonic() + seconds
    while not (records := read_records(file)) or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end, f"{file} is still not finished"
        time.sleep(0.05)
    return records


def history(records: list[Record]) -> dict[int, dict]:
    """Return the logged values of each step."""
    steps: dict[int, dict] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = steps.setdefault(record.history.step.num, {})
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                row[name] = row.get(name, {}) | {inner[0]: value} if inner else value
    return steps


def make_groups(step: int) -> list[Group]:
    group = Group("q1", f"question {step}", "4", baseline=0.5)
    texts = ["<think>5<refine>4</refine></think><answer>4</answer>", "<think>5</think><answer>5</answer>"]
    for reward, text in zip((3.0, None), texts, strict=True):
        sample = Sample(
            [1], Completion([5, 6, 7], [-0.1] * 3, "stop"), text, "refine", 1.0, 1.0, 1.0, reward, trained=reward is not None
        )
        group.refine_samples.append(sample)
    return [group]


def mirrored_steps(tmp_path, steps, *more: str) -> RunFolder:
    config = parse_config(["--runs-dir", str(tmp_path), "--run", "r", "--wandb", "offline", "--show-every", "2", *more])
    run = RunFolder(config, resuming=True)
    run.start_wandb(config)
    for step in steps:
        run.log(step, {"reward": step / 10, "kl": float("nan")})
        run.log_rollouts(step, make_groups(step))
    run.close()
    return run


def test_metrics_histograms_and_tables_are_recorded_and_resumed(tmp_path):
    """Bug guarded: a table that replaces the one before, samples logged to another step than the metrics, a resumed run that
    starts a second one."""
    mirrored_steps(tmp_path, (1, 2))
    time.sleep(1.1)  # wandb names its folders by the second
    run = mirrored_steps(tmp_path, (3, 4))
    files = sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))
    records = [finished_records(file) for file in files]
    assert len(files) == 2
    started = [next(r.run for r in part if r.WhichOneof("record_type") == "run") for part in records]
    assert {r.run_id for r in started} == {(run.path / "wandb_id").read_text()}
    assert {r.run_group for r in started} == {"demo"}
    keys = {item.key for item in started[0].config.update}
    assert {"refine_reward", "git", "versions"} <= keys

    steps = history(records[0]) | history(records[1])
    assert [steps[n]["reward"] for n in (1, 2, 3, 4)] == [0.1, 0.2, 0.3, 0.4]
    tables = {n: [key for key in steps[n] if key.startswith("samples/")] for n in steps}
    assert tables == {1: ["samples/step_000001"], 2: ["samples/step_000002"], 3: [], 4: ["samples/step_000004"]}
    assert steps[3]["histograms/reward"]["_type"] == "histogram"
    assert sum(steps[3]["histograms/reward"]["values"]) == 1, "failed scores belong in no histogram"
    assert sum(steps[3]["histograms/advantage"]["values"]) == 1, "nor do samples that are not trained on"
    assert sum(steps[3]["histograms/completion_length"]["values"]) == 2

    (file,) = run.path.glob("wandb/offline-run-*/files/media/table/samples/step_000004*.table.json")
    table = json.loads(file.read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert row["prompt"] == "question 4"
    assert row["response"] == "<think>5▶<refine>4</refine>◀</think><answer>4</answer>"
    assert (row["reward"], row["baseline"], row["advantage"]) == (3.0, 0.5, 0.0)


def test_an_unreachable_server_does_not_hold_up_the_run(tmp_path, monkeypatch, capsys):
    """Bug guarded: a key without network, which blocked a run for minutes and then ended it; a sweep's own group replaced."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setattr(rl.run.wandb, "INIT_TIMEOUT", 2.0)
    run = mirrored_steps(tmp_path, (1,), "--wandb", "online")
    assert "recorded offline" in capsys.readouterr().out
    (file,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    records = finished_records(file)
    assert history(records)[1]["reward"] == 0.1
    assert [r.run.run_group for r in records if r.WhichOneof("record_type") == "run"] == ["mine"]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--seed", "3", "--sft-seed", "3", "--eval-every", "20", "--run", "x"], "demo"),
        (["--refine-reward", "presence"], "demo --refine-reward presence"),
        (["--model", "some/Qwen-1B", "--zeta", "0.1"], "default Qwen-1B --zeta 0.1"),
        (["--judge-options", '{"concurrency": 8}'], "demo"),  # changes no score
    ],
)
def test_runs_that_differ_in_their_seeds_share_a_group(flags, name):
    assert group_name(parse_config(flags)) == name


def test_the_table_is_bounded():
    """Bug guarded: a table that grows with the group; refinements that nobody sees, or that are marked to no end."""
    (group,) = make_groups(1)
    group.refine_samples[0].text = "a<refine>b</refine>c<refine>d"
    rows = table_rows([rollout_record(group, group.refine_samples[0])] * 100, 7)
    assert (len(rows), len(rows[0])) == (7, len(TABLE_COLUMNS))
    assert rows[0][TABLE_COLUMNS.index("response")] == "a▶<refine>b</refine>◀c▶<refine>d◀"
