"""Update speed and memory: log-probs, Eq. 3 and backward of a rollout batch, against simple_GRPO's step on the same weights.

    OMP_NUM_THREADS=1 python benchmarks/update.py --simple-grpo FOLDER      against a clone of lsdefine/simple_GRPO
    OMP_NUM_THREADS=1 python benchmarks/update.py --logprobs                memory of log-probs at a vocabulary of 152k

Both compute the same gradient, which is checked. Times are process CPU time on one thread, interleaved; memory is the peak of a
process of its own that does one step (weights, gradients and libraries included). Compare ratios within a row.
"""

import argparse
import ast
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.peers import hugging_face_model
from benchmarks.workload import SAMPLES, Case, cpu_time, make_case
from rl.batch import pad_sequences
from rl.logprobs import CHUNK_ELEMENTS, ChunkedLogProbs, token_logprobs
from rl.loss import grpo_loss

BETA, CLIP = 0.04, 0.2
WAYS = {  # name -> (log-probs, activation checkpointing)
    "each row alone": (token_logprobs, False),
    "prompt shared": (token_logprobs, False),
    "shared, checkpointed": (token_logprobs, True),
}
HEADER = (
    f"{'case':10} {'log-probs':21} {'CPU s':>8} {'peak MB':>8} {'peer s':>8} {'ratio':>7} {'':15} {'peer MB':>8} {'share':>6}"
    f" {'grad gap':>10}"
)
PEER, PEER_FILE = "simple_GRPO", "grpo_vllm_one.py"
Step = Callable[[], dict[str, Tensor]]  # one forward and backward of all groups; the gradients
LOGPROB_SHAPE = (4096, 152_064, 896)  # tokens, vocabulary, width of Qwen2.5-0.5B; larger widths only add to both sides


@dataclass(frozen=True)
class Batch:
    """A question's completions, of random ids but the pad id 0. Old policy and reference are 0.1 below and above the policy."""

    ids_BT: Tensor
    mask_BT: Tensor
    advantages_B: Tensor
    old_BT: Tensor
    ref_BT: Tensor
    prompt: int


@torch.no_grad()
def make_batches(case: Case) -> list[Batch]:
    generator, batches = torch.Generator().manual_seed(0), []
    for question, ids in enumerate(case.prompts):
        lengths = case.limits[question * SAMPLES : (question + 1) * SAMPLES]
        prompt = [max(1, token) for token in ids]
        draws = [torch.randint(1, case.model.config.vocab_size, (length,), generator=generator) for length in lengths]
        ids_BT, mask_BT = pad_sequences([(prompt, completion.tolist()) for completion in draws], torch.device("cpu"))
        logp_BT, _ = token_logprobs(case.model, ids_BT, mask_BT, temperature=1.0)
        advantages_B = torch.randn(SAMPLES, generator=generator)
        batches.append(Batch(ids_BT, mask_BT, advantages_B, logp_BT - 0.1, logp_BT + 0.1, len(prompt)))
    return batches


def ours(case: Case, way: str) -> Step:
    model, (logprobs, model.activation_checkpointing) = case.model, WAYS[way]
    batches = make_batches(case)
    setting = dict(clip_low=CLIP, clip_high=CLIP, beta=BETA, aggregation="seq", denominator=SAMPLES)

    def step() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        for b in batches:
            logp_BT, _ = logprobs(model, b.ids_BT, b.mask_BT, temperature=1.0)
            loss, _ = grpo_loss(logp_BT, b.old_BT, b.ref_BT, b.advantages_B, b.mask_BT, **setting)
            loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    return step


def simple_grpo(case: Case, path: str) -> Step:
    """Its `GRPO_step`, cut out of its script (which loads a model and starts servers when run), on transformers' model."""
    file = Path(path) / PEER_FILE
    tree = ast.parse(file.read_text(encoding="utf-8"))
    wanted = {"get_per_token_logps", "GRPO_step"}
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    model = hugging_face_model(case).train()
    space = dict(torch=torch, engine=model, tokenizer=SimpleNamespace(pad_token_id=0), beta=BETA, clip_param=CLIP)
    exec(compile(tree, str(file), "exec"), space)
    batches = make_batches(case)

    def step() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        for b in batches:
            fixed = dict(refs=b.ref_BT[:, b.prompt :], gen_logps=b.old_BT[:, b.prompt :])
            space["GRPO_step"](dict(plen=b.prompt, inputs=b.ids_BT, rewards=b.advantages_B, **fixed)).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    return step


def peak_mb(*arguments: str) -> float:
    """Peak memory of a fresh process that runs this script with the given arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def own_peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(case_name: str, path: str | None, repeats: int, peaks: dict[tuple[str, str], float]) -> None:
    """One row for each way of ours, with the ratio of the peer's figures to it."""
    peer = simple_grpo(make_case(case_name), path) if path else None
    for way in WAYS:
        step = ours(make_case(case_name), way)
        gap = gradient_gap(step(), peer()) if peer else 0.0
        pairs = [(cpu_time(step), cpu_time(peer) if peer else 0.0) for _ in range(repeats)]
        seconds, mb = statistics.median(a for a, _ in pairs), peaks[case_name, way]
        line = f"{case_name:10} {way:21} {seconds:8.2f} {mb:8.0f}"
        if peer:
            ratios, peer_mb = sorted(b / a for a, b in pairs), peaks[case_name, PEER]
            line += f" {statistics.median(b for _, b in pairs):8.2f} {statistics.median(ratios):6.2f}x"
            line += f" ({ratios[0]:.2f} - {ratios[-1]:.2f}) {peer_mb:8.0f} {mb / peer_mb:6.2f} {gap:10.1e}"
        print(line, flush=True)


def gradient_gap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of the two gradients, over the largest element. They are gradients of one loss: it must be tiny."""
    largest = max(grad.abs().max() for grad in theirs.values())
    gap = max((a - b).abs().max() for a, b in ((grad, theirs[name]) for name, grad in ours.items())) / largest
    assert gap < 1e-3, f"not the same gradient: {gap}"
    return gap.item()


def logprobs_once(chunked: bool) -> None:
    """Forward and backward of log-probs from hidden states, at a real vocabulary."""
    tokens, vocab, width = LOGPROB_SHAPE
    generator = torch.Generator().manual_seed(0)
    hidden_NE = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight_VE = (torch.randn(vocab, width, generator=generator) / width**0.5).requires_grad_()
    target_N = torch.randint(0, vocab, (tokens,), generator=generator)
    if chunked:
        logp_N, _ = ChunkedLogProbs.apply(hidden_NE, weight_VE, target_N, 1.0, max(1, CHUNK_ELEMENTS // vocab))
    else:
        logp_N = (hidden_NE @ weight_VE.T).log_softmax(-1).gather(1, target_N[:, None])[:, 0]
    logp_N.sum().backward()


def compare_logprobs() -> None:
    tokens, vocab, width = LOGPROB_SHAPE
    base, full, chunked = (peak_mb("--peak", name) for name in ("inputs", "full logits", "chunked logits"))
    print(f"log-probs of {tokens} tokens, vocabulary {vocab}, width {width}: peak above the inputs, forward and backward")
    print(f"full logits {full - base:.0f} MB, ours {chunked - base:.0f} MB: {(full - base) / (chunked - base):.1f}x less")
    weight = vocab * width * 4 / 2**20
    print(f"without the gradient of the head's weight, which both need ({weight:.0f} MB): ", end="")
    print(f"{full - base - weight:.0f} and {chunked - base - weight:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="tiny-4,small-1", help="size-questions, comma separated")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved pairs (default: 3)")
    parser.add_argument("--simple-grpo", metavar="FOLDER", help="a clone of lsdefine/simple_GRPO")
    parser.add_argument("--logprobs", action="store_true", help="memory of log-probs at a vocabulary of 152k instead")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        if given.peak in ("full logits", "chunked logits"):
            logprobs_once(given.peak == "chunked logits")
        elif given.peak == "inputs":
            tokens, vocab, width = LOGPROB_SHAPE
            torch.zeros(vocab + tokens, width).fill_(1.0)
        else:
            case = make_case(given.cases)
            step = simple_grpo(case, given.simple_grpo) if given.peak == PEER else ours(case, given.peak)
            step()
        print(own_peak_mb())
    elif given.logprobs:
        compare_logprobs()
    else:
        compare_steps(given.cases.split(","), given.simple_grpo, given.repeats)


def compare_steps(cases: list[str], path: str | None, repeats: int) -> None:
    if path is None:
        print("simple_GRPO left out: no --simple-grpo FOLDER given")
    elif not (Path(path) / PEER_FILE).is_file():
        raise SystemExit(f"{path} has no {PEER_FILE}; clone lsdefine/simple_GRPO and give its folder")
    extra = ["--simple-grpo", path] if path else []
    names = [*WAYS, *([PEER] if path else [])]
    # first of all: a process begins with the peak of the one that started it
    peaks = {(case, name): peak_mb("--peak", name, "--cases", case, *extra) for case in cases for name in names}
    print(HEADER)
    for case in cases:
        compare(case, path, repeats, peaks)


if __name__ == "__main__":
    main()
