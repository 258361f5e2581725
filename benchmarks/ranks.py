"""How much faster two processes are than one: rollout and update of a step, on the CPU cores of this machine.

    OMP_NUM_THREADS=1 python benchmarks/ranks.py
    OMP_NUM_THREADS=1 python benchmarks/ranks.py --ranks 4 --hidden 256 --pairs 5

One process with one thread against several of one thread each: the same model, questions and lengths, in pairs that take turns,
because a machine that does other things as well is not the same from minute to minute. The figure is the median of the pairs'
ratios, with the smallest and the largest; several processes cannot be faster than there are cores for them. The ratio of CPU
seconds, of the one process and of the busiest of the several, is what cores that do nothing else would allow: it leaves waiting
out.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from data.division import build_tokenizer, load_split
from data.prompts import PromptRenderer, Prompts, load_tokenizer
from model import ModelConfig, Transformer, save_model
from rewards.judge import RuleScorer
from rl.advantages import select_samples
from rl.config import PRESETS, Config
from rl.distributed import gather, rank
from rl.judging.waiting import PendingScores
from rl.records import Group
from rl.rollout import Rollout
from rl.run.processes import leave, process_group
from rl.sampler import Sampler
from rl.weights.policy import TrainState, WholeWeights, load_policy, load_reference, make_optimizer
from train import update_policy


def write_model(folder: Path, hidden: int, layers: int) -> None:
    tokenizer = build_tokenizer(Prompts())
    config = ModelConfig(
        "qwen3",
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden // 4,
        tie_word_embeddings=True,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0), std=0.1)
    save_model(model, tokenizer, folder)


def reward_at_random(groups: list[Group]) -> None:
    """Rewards of a random model are all equal, and equal rewards are skipped."""
    generator = torch.Generator().manual_seed(0)
    for group in groups:
        group.dropped = ""
        for sample in group.refine_samples:
            sample.reward = float(torch.rand((), generator=generator))


class Bench:
    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        demo = Config(**{**PRESETS["demo"], "preset": "demo"})
        self.config = replace(demo, plain_policy="current", max_new_tokens=arguments.new_tokens, lr=0.0)
        cpu = torch.device("cpu")
        policy, reference = load_policy(self.config, folder, cpu), load_reference(folder, cpu, offload=False)
        self.state = TrainState(policy, make_optimizer(policy, self.config), reference)
        weights, scores = WholeWeights(policy), PendingScores(RuleScorer(), 0.0, 0.0)
        tokenizer = load_tokenizer(folder)
        sampler = Sampler(weights.model, stop_ids=[tokenizer.eos_token_id], max_slots=256, max_len=256)
        renderer = PromptRenderer(tokenizer, Prompts())
        self.rollout = Rollout(self.config, renderer, sampler, scores, weights)
        self.questions = load_split(held_out=True)[: arguments.questions]

    def step(self, number: int) -> list[float]:
        """Seconds of a rollout and of an update, and CPU seconds of both on the rank that needed most."""
        gather(None)
        times = [clocks()]
        groups = self.rollout.collect(self.questions, number)
        times.append(clocks())
        reward_at_random(groups)
        update_policy(self.state, select_samples(groups, self.config), self.config, number)
        gather(None)
        times.append(clocks())
        spent = [after - before for kind in (0, 1) for before, after in pairwise(t[kind] for t in times)]
        return [max(seconds) for seconds in zip(*gather(spent), strict=True)]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def work(folder: Path, arguments: argparse.Namespace) -> None:
    """A process that makes a step whenever a line arrives, and says how long it took."""
    torch.set_num_threads(1)
    with process_group("cpu", 10):
        bench = Bench(folder, arguments)
        bench.step(0)
        print("ready", flush=True)
        for number, _ in enumerate(sys.stdin, start=1):
            seconds = bench.step(number)
            if rank() == 0:
                print(*seconds, flush=True)
    leave(0)


class Team:
    """The processes of one side."""

    def __init__(self, count: int, folder: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, __file__, *sys.argv[1:], "--work", folder]
        self.processes = []
        for number in range(count):
            names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in names.items()}
            environment = environment if count > 1 else dict(os.environ, OMP_NUM_THREADS="1")
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.processes.append(subprocess.Popen(command, env=environment, **pipes))
        self.processes[0].stdout.readline()

    def step(self) -> list[float]:
        for process in self.processes:
            print(file=process.stdin, flush=True)
        return [float(value) for value in self.processes[0].stdout.readline().split()]

    def end(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait(timeout=60)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="processes of the faster side")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of steps")
    parser.add_argument("--questions", type=int, default=32, help="of a step; each gets 8 responses and 8 plain answers")
    parser.add_argument("--new-tokens", type=int, default=100, help="longest response")
    parser.add_argument("--hidden", type=int, default=128, help="size of the model")
    parser.add_argument("--layers", type=int, default=4, help="of the model")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.work:
        work(Path(arguments.work), arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), arguments.hidden, arguments.layers)
        one, several = Team(1, folder), Team(arguments.ranks, folder)
        pairs = [(one.step(), several.step()) for _ in range(arguments.pairs)]
        one.end()
        several.end()
    print(f"{'':14s}{'1 process':>12s}{f'{arguments.ranks} processes':>14s}{'speed-up':>10s}   (range of {len(pairs)} pairs)")
    for index, name in enumerate(("rollout", "update", "rollout, CPU", "update, CPU")):
        seconds = [statistics.median(side[index] for side in sides) for sides in zip(*pairs, strict=True)]
        ratios = sorted(a[index] / b[index] for a, b in pairs)
        shown = f"{statistics.median(ratios):9.2f}x   ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"{name:14s}{seconds[0]:11.2f}s{seconds[1]:13.2f}s{shown}")


if __name__ == "__main__":
    main()
