"""Supervised training: maximise log pi of given responses. Behind the demo's warm start (demo.py) and PASR(+IFT) (sft.py).

Shapes: B sequences, T tokens.
"""

from collections.abc import Callable

import torch
from tqdm import tqdm

from model.transformer import Transformer
from rl.batch import pad_sequences
from rl.logprobs import token_logprobs
from rl.optim import lr_factor, set_lr

Pair = tuple[list[int], list[int]]  # prompt ids, response ids with the stop token


def supervised_loss(model: Transformer, pairs: list[Pair], denominator: int | None = None) -> torch.Tensor:
    """Sum of -log pi over the response tokens / denominator (default: their number); the prompts carry no loss."""
    ids_BT, mask_BT = pad_sequences(pairs, model.device)
    logp_BT, _ = token_logprobs(model, ids_BT, mask_BT, temperature=1.0)
    return -logp_BT.sum() / (denominator or mask_BT.sum())


def train_supervised(
    model: Transformer,
    batch_at: Callable[[int], list[Pair]],
    optimizers: list[tuple[torch.optim.Optimizer, float]],
    *,
    steps: int,
    warmup_steps: int,
    schedule: str,
    decay_share: float,
    max_grad_norm: float,
    title: str,
    micro_batch_tokens: int | None = None,
) -> list[float]:
    """Train in place.

    Args:
        batch_at: the batch of a step; a pure function, so that a run can be repeated.
        optimizers: each over its own part of the parameters, with its peak learning rate.
        steps, warmup_steps, schedule, decay_share: see `lr_factor`.
        title: of the progress bar.
        micro_batch_tokens: padded tokens of one forward and backward; None: the whole batch at once. The loss is the same.

    Returns:
        The loss of each step.

    Raises:
        RuntimeError: a gradient that is not finite; the weights are those of the last good step.
    """
    model.train()
    losses = []
    bar = tqdm(range(steps), desc=title, mininterval=1.0)
    for step in bar:
        pairs = batch_at(step)
        tokens = sum(len(response) for _, response in pairs)
        loss = 0.0
        for part in split_pairs(pairs, micro_batch_tokens):
            part_loss = supervised_loss(model, part, tokens)
            part_loss.backward()
            loss += part_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm, error_if_nonfinite=True)
        factor = lr_factor(step, warmup_steps=warmup_steps, total_steps=steps, schedule=schedule, decay_share=decay_share)
        for optimizer, lr in optimizers:
            set_lr(optimizer, lr * factor)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    model.eval()
    return losses


def split_pairs(pairs: list[Pair], budget: int | None) -> list[list[Pair]]:
    """A batch in parts of at most `budget` padded tokens, one pair at least, neighbours in length together."""
    if budget is None:
        return [pairs]
    parts: list[list[Pair]] = []
    longest = 0
    for pair in sorted(pairs, key=lambda p: len(p[0]) + len(p[1]), reverse=True):
        if not parts or longest * (len(parts[-1]) + 1) > budget:
            parts.append([])
            longest = len(pair[0]) + len(pair[1])
        parts[-1].append(pair)
    return parts
