"""Two processes compute what one does: samples, gradients, checkpoints; and they fail and stop together.

One start of two_ranks.main serves most of these tests, because a start takes seconds.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from threading import RLock

import pytest
import torch
import torch.distributed as dist
import two_ranks
from conftest import assert_same_run, flags, lines_of, make_model, without_costs, write_questions, write_task_folder
from safetensors.torch import load_file
from tqdm import tqdm

import train
from model import load_model, save_model
from rl.batch import balance
from rl.records import Completion, Sample

TOLERANCE = {"tied": 1e-9, "untied": 1e-9, "gentle": 1e-6}  # the last is float32, its weights small enough for that


def environment(number: int, count: int, port: int) -> dict[str, str]:
    """Return the variables that a launcher sets in each process, as torchrun and SLURM's srun do."""
    ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in ranks.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_rank(number: int, count: int, port: int, folder: Path, main: Callable[[Path], None]) -> None:
    with (folder / f"rank_{number}.txt").open("w") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    tqdm.set_lock(RLock())  # the usual one is shared with the parent
    os.environ.update(environment(number, count, port))
    main(folder)


def run_ranks(
    count: int, folder: Path, timeout: float, main: Callable[[Path], None] = two_ranks.main
) -> tuple[list[int | None], str]:
    """Exit codes and output of a function in so many processes. They are forked: importing all anew takes seconds."""
    port = free_port()
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=run_rank, args=(number, count, port, folder, main)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        process.kill()
        process.join()
    output = "".join((folder / f"rank_{number}.txt").read_text() for number in range(count))
    return [process.exitcode for process in processes], output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_task_folder(folder / "model")
    write_questions(folder / "data.jsonl", 7)
    for seed, part in ((0, folder), (1, folder / "reference")):
        for name, tied in (("tied", True), ("untied", False)):
            family = "qwen2" if tied else "qwen3"
            model = make_model(family, seed=seed, vocab_size=31, num_hidden_layers=2, tie_word_embeddings=tied)
            save_model(model, None, part / name)  # 31 rows: two ranks hold 16 and 15
        write_task_folder(part / "task", seed=seed)
        gentle = make_model("qwen3", vocab_size=31, num_hidden_layers=2)
        gentle.init_weights(torch.Generator().manual_seed(seed), std=0.08)
        save_model(gentle, None, part / "gentle")
    return folder


@pytest.fixture(scope="module")
def one(place, reward_for_length, no_report) -> dict:
    """The same with one process: this one. Leaves a run stopped at step 4 for two processes to go on with."""
    two_ranks.exported(place)
    two_ranks.run(place, "one")
    two_ranks.run(place, "one-two", steps=4)
    two_ranks.run(place, "adapters-one", "--lora-rank", "4")
    two_ranks.run(place, "adapters-one-two", "--lora-rank", "4", steps=4)
    parts = {"updates": two_ranks.updates, "steps": two_ranks.several_steps, "rollouts": two_ranks.rollouts}
    results = {name: function(place) for name, function in parts.items()}
    dist.destroy_process_group()  # of one, which offloading made
    return results


@pytest.fixture(scope="module")
def two(place, one) -> dict:
    codes, output = run_ranks(2, place, 240)
    assert codes == [0, 0], output
    assert "Traceback" not in output
    return torch.load(place / "results.pt", weights_only=False)  # written by ourselves a moment ago


def assert_close(ours, theirs, tolerance: float) -> None:
    """Compare results piece by piece: numbers to a tolerance, everything else exactly."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_close(ours[name], theirs[name], tolerance)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_close(*pair, tolerance)
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
    else:
        assert ours == (pytest.approx(theirs, abs=tolerance, rel=tolerance) if isinstance(theirs, float) else theirs)


@pytest.mark.parametrize("case", [*two_ranks.UPDATES, "checkpointing", "adapters", "offload"])
@pytest.mark.parametrize("model", TOLERANCE)
def test_gradients_of_two_ranks_are_those_of_one(one, two, model, case):
    """Bug guarded: a denominator or an advantage of one rank alone, gradients averaged that should be summed, a shard of a
    tied or unevenly cut weight that misses rows, a rank without samples that hangs or divides by 0."""
    ours, theirs = two["updates"][model, case], one["updates"][model, case]
    assert bool(ours["gradients"]) == (case != "all skipped")
    assert_close(ours["gradients"], theirs["gradients"], TOLERANCE[model])
    assert_close(ours, theirs, 10 * TOLERANCE[model])


def test_one_denominator_whatever_the_micro_batches(two):
    """Bug guarded: results that change with the memory of the card."""
    for model in ("tied", "untied"):
        first, *others = (two["updates"][model, case]["gradients"] for case in ("8 x 1", "2 x 4", "1 x 8"))
        assert_close(others, [first] * 2, 1e-9)


def test_several_optimizer_steps(one, two):
    """Bug guarded: minibatches that differ between ranks, old log-probs of stale shards, clipping by one shard's norm."""
    assert_close(two["steps"]["metrics"], one["steps"]["metrics"], 1e-9)
    assert_close(two["steps"]["weights"], one["steps"]["weights"], 1e-7)


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(two):
    """Bug guarded: one rank steps and the other does not: their weights part for good."""
    assert two["skipped"] == {"skipped": [[1] * 4] * 2, "steps": [0, 0]}


@pytest.mark.parametrize("count", [5, 1, 2])
def test_two_ranks_sample_the_same_tokens(one, two, count):
    """Bug guarded: a sample that depends on the rank it was drawn on; groups lost or out of order when questions do not divide
    by ranks, or are fewer."""
    assert_close(two["rollouts"][count], one["rollouts"][count], 1e-9)


def test_reference_baselines_are_sampled_once_for_all_ranks(one, two, place):
    """Bug guarded: a question sampled again because another rank has its baseline; lines torn or lost in the shared file."""
    for visit in range(2):
        assert two["rollouts"]["reference", visit] == one["rollouts"]["reference", visit]
    assert two["rollouts"]["reference", 1][1] == 0
    files = [next((place / f"baselines_{count}").glob("*.jsonl")) for count in (1, 2)]
    kept = [sorted(lines_of(file), key=lambda row: row["key"]) for file in files]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 5


def test_a_judge_that_is_away_for_one_rank_stops_all(two):
    """Bug guarded: the others wait for ever for the rank that left."""
    assert two["rollouts"]["judge away"] == ["the judge of this rank is away"] * 2


def test_borrowed_weights_are_given_back(two):
    """Bug guarded: a whole copy that stays through the update, 2 bytes a parameter that it lacks."""
    assert two["rollouts"]["released"] == 0


def test_export_of_a_sharded_model(two, place):
    """Bug guarded: an exported file that holds a shard, or the weights of another name."""
    assert len(list((place / "exported_2").glob("*.safetensors"))) > 2
    for file in (place / "exported_1").iterdir():
        assert file.read_bytes() == (place / "exported_2" / file.name).read_bytes(), file.name
    assert load_model(place / "exported_2")


def assert_similar_run(run, other, weights: str = "model.safetensors") -> None:
    """The same samples, and weights equal up to the rounding of sums in another order, which Adam at 1e-2 makes visible."""
    assert_close(*(without_costs(lines_of(r / "metrics.jsonl")) for r in (run, other)), 1e-4)
    for file in (other / "rollouts").iterdir():
        assert [row["text"] for row in lines_of(run / "rollouts" / file.name)] == [row["text"] for row in lines_of(file)]
    assert_close(*(load_file(r / "checkpoints/step_000008" / weights) for r in (run, other)), 1e-4)


@pytest.mark.parametrize(("first", "then"), [(2, 2), (2, 1), (1, 2)])
def test_another_process_count_resumes(one, two, place, first, then):
    """Bug guarded: state that can only be read by as many processes as wrote it."""
    runs = place / "runs"
    if (first, then) == (2, 1):
        assert train.main(flags(place, "two-one", "--resume", "auto", "--resume-with-changes")) == 0
    if (first, then) == (2, 2):
        assert_same_run(runs / "two-two", runs / "two")  # to the last bit
    assert_similar_run(runs / {(2, 2): "two-two", (2, 1): "two-one", (1, 2): "one-two"}[first, then], runs / "one")


@pytest.mark.parametrize("name", ["adapters-two", "adapters-one-two"])
def test_adapters_of_two_ranks_are_those_of_one(two, place, name):
    """Bug guarded: adapters that part because each rank steps with its own gradient."""
    assert_similar_run(place / "runs" / name, place / "runs/adapters-one", "adapter_model.safetensors")


def test_offloaded_run_is_the_run_on_the_device(two, place):
    """Bug guarded: an optimizer step on stale copies of the offloaded weights."""
    assert_same_run(place / "runs/offload", place / "runs/two")


def test_a_signal_to_one_rank_stops_all_after_the_step(two, place):
    """Bug guarded: one rank saves and leaves, the other starts the next step and waits."""
    assert two["after signal"] == [3, 3]
    assert (place / "runs/signal/checkpoints/step_000003/COMPLETE").is_file()
    assert not (place / "runs/signal/summary.json").exists()
    assert (place / "runs/signal/report.html").is_file()


def test_a_disk_full_on_rank_0_is_told_everywhere(two, place):
    """Bug guarded: rank 0 gives up, the others wait for it in the gathering of the next weight."""
    assert all("step 2 could not be written" in said and "No space left" in said for said in two["disk full"])
    assert not list((place / "runs/disk/checkpoints").iterdir())


def test_balance_shares_tokens_out():
    """Bug guarded: one rank with all the long samples, while the others wait for it."""
    samples = [Sample([1] * 3, Completion([1] * n, [0.0] * n, "stop"), "", "refine") for n in (50, 9, 9, 9, 9, 9, 5, 20)]
    for ranks in (1, 2, 3, 10):
        shares = balance(samples, ranks)
        assert sorted(id(s) for share in shares for s in share) == sorted(map(id, samples))
        loads = [sum(3 + len(s.completion.ids) for s in share) for share in shares]
        assert ranks == 10 or max(loads) <= max(53, sum(loads) / ranks + 12)


def test_balance_keeps_small_groups_together():
    """Bug guarded: prompts computed on every rank, because the samples of a question are strewn over all of them."""
    samples = [
        Sample([q] * 30, Completion([1] * (q + g), [0.0] * (q + g), "stop"), "", "refine")
        for q in range(1, 33)
        for g in range(8)
    ]
    shares = balance(samples, 4)
    assert sum(len({tuple(s.prompt_ids) for s in share}) for share in shares) == 32
    loads = [sum(30 + len(s.completion.ids) for s in share) for share in shares]
    assert max(loads) < 1.05 * min(loads)
