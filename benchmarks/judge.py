"""Time of a rollout that is judged as answers end, against sampling alone and against one call after another.

    python benchmarks/judge.py                                  # a random model of the embedded task's size, on this machine
    python benchmarks/judge.py --model Qwen/Qwen2.5-7B --questions 32 --group-size 8 --num-plain 8 --max-new-tokens 1500

The judge is a process of its own that sleeps and replies, so that it takes no core from the sampler. Three ways, over the same
completions: sampling alone; `rl/rollout.py` with `HttpJudge`, which scores while others are still being sampled; and sampling
followed by one call after another, as the released code does.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.division import build_tokenizer, load_split
from data.examples import Example
from data.prompts import PromptRenderer, Prompts, load_prompts, load_tokenizer, stop_ids
from model import ModelConfig, Transformer, load_model, save_model
from model.checkpoint import resolve_checkpoint
from rewards.http_judge import HttpJudge
from rewards.judge import Judgement, Scorer
from rewards.judge_prompts import JUDGE_PROMPT
from rl.config import PRESETS, Config
from rl.distributed import pick_device
from rl.judging.waiting import PendingScores
from rl.rollout import Rollout
from rl.sampler import Sampler
from rl.weights.policy import compute_dtype

REPLY = json.dumps({"choices": [{"message": {"role": "assistant", "content": "0.5"}}]}).encode()


class NoJudge:
    """Sampling alone: every score is 0.5, at once."""

    def __init__(self, judge: HttpJudge | None = None) -> None:
        self.judge = judge

    def submit(self, item: Judgement) -> "Future[float | None]":
        future: Future[float | None] = Future()
        future.set_result(0.5)
        return future

    def finish(self) -> None:
        pass

    def take_stats(self) -> dict[str, float]:
        return {"judge/calls": 0, "judge/failed": 0}


class SerialJudge(NoJudge):
    """Keeps the answers until sampling is over, then has them scored one at a time."""

    def __init__(self, judge: HttpJudge) -> None:
        super().__init__(judge)
        self.waiting: list[tuple[Judgement, Future[float | None]]] = []

    def submit(self, item: Judgement) -> "Future[float | None]":
        self.waiting.append((item, Future()))
        return self.waiting[-1][1]

    def finish(self) -> None:
        for item, future in self.waiting:
            future.set_result(self.judge.submit(item).result())
        self.waiting.clear()

    def take_stats(self) -> dict[str, float]:
        return self.judge.take_stats()


def serve(pipe: Connection, latency: float, concurrency: int) -> None:
    """Run an OpenAI-compatible server that sleeps, for at most `concurrency` calls at once, and replies 0.5. Send its port."""

    async def main() -> None:
        slots = asyncio.Semaphore(concurrency)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readline():  # the request line; nothing once the client has hung up
                size = 0
                while (line := await reader.readline()).strip():
                    name, _, value = line.partition(b":")
                    size = int(value) if name.lower() == b"content-length" else size
                await reader.readexactly(size)
                async with slots:
                    await asyncio.sleep(latency)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(REPLY), REPLY))
                await writer.drain()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@torch.no_grad()
def random_model(folder: Path, length: int = 200) -> Path:
    """Write a random model of the demo's size as a checkpoint. Its answers take `length` tokens on average."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(Prompts())
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4)
    config = ModelConfig("qwen3", vocab_size=len(tokenizer), head_dim=16, rope_theta=1e4, **shape)
    model = Transformer(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0, 0.02)
    model.model.embed_tokens.weight[:, 0] = 1.0  # a constant after the last norm, of size sqrt(64): the head's bias
    model.lm_head.weight[tokenizer.eos_token_id, 0] = -math.log(length / len(tokenizer)) / 8
    save_model(model, tokenizer, folder)
    return folder


def make_rollout(args: argparse.Namespace, source: Path) -> Rollout:
    tokenizer, device = load_tokenizer(source), pick_device(args.device)
    renderer = PromptRenderer(tokenizer, load_prompts(None, source))
    model = load_model(source, dtype=compute_dtype(device), device=device).requires_grad_(False)
    config = replace(
        Config(**{**PRESETS["default"], "preset": "default"}),
        group_size=args.group_size,
        num_plain=args.num_plain,
        max_new_tokens=args.max_new_tokens,
        judge_sees="response",  # a random model hardly ever writes an answer pair
    )
    stops, longest = list(stop_ids(source, tokenizer)), config.max_prompt_tokens + args.max_new_tokens
    sampler = Sampler(model, stop_ids=stops, max_slots=args.max_slots, max_len=longest)
    return Rollout(config, renderer, sampler, PendingScores(NoJudge(), 0.0, 0.0))


def collect(rollout: Rollout, questions: list[Example], step: int, scorer: Scorer) -> tuple[float, float]:
    """Return the wall and CPU seconds of one rollout."""
    rollout.scores = PendingScores(scorer, 0.0, 0.0)
    wall, cpu = time.perf_counter(), time.process_time()
    rollout.collect(questions, step)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(rollout: Rollout, questions: list[Example], url: str, args: argparse.Namespace) -> None:
    """Print the median of each way. They take turns, so that a busy machine slows all of them."""
    ways = {"sampling alone": NoJudge, "scored while sampling": lambda judge: judge, "one call after another": SerialJudge}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    stats: dict[str, dict[str, float]] = {}
    collect(rollout, questions, 0, NoJudge())  # warm up
    for step in range(1, args.repeats + 1):
        for name, scorer in ways.items():
            # a new judge each time: nothing is remembered
            with closing(HttpJudge(url, "sleeper", prompt_template=JUDGE_PROMPT, concurrency=args.concurrency)) as judge:
                times[name].append(collect(rollout, questions, step, scorer(judge)))
                stats[name] = rollout.judge_stats
    alone = statistics.median(wall for wall, _ in times["sampling alone"])
    for name, taken in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        calls, failed = (stats[name][f"judge/{what}"] for what in ("calls", "failed"))
        print(f"{name:24s} {wall:7.2f} s {wall / alone:6.2f} x   (CPU {cpu:6.2f} s; {calls:.0f} calls, {failed:.0f} failed)")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder or hub id; none: a random model of the demo's size")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--num-plain", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=600)
    parser.add_argument("--max-slots", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of one call")
    parser.add_argument("--concurrency", type=int, default=16, help="calls at once, of the client and of the server")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    args = parse()
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(there, args.latency, args.concurrency), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    with tempfile.TemporaryDirectory() as folder:
        source = resolve_checkpoint(args.model) if args.model else random_model(Path(folder))
        samples = args.questions * (args.group_size + args.num_plain)
        print(f"{samples} answers, judge: {args.latency} s a call, {args.concurrency} at once")
        measure(make_rollout(args, source), load_split(held_out=True)[: args.questions], url, args)
    server.terminate()


if __name__ == "__main__":
    main()
