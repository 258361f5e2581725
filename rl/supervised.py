"""Supervised training: maximise log pi of written responses. The demo's warm start (demo.py) and PASR(+IFT) (sft.py) use it.

Shapes: B sequences, T tokens.
"""

from collections.abc import Callable

import torch
from tqdm import tqdm

from model.transformer import Transformer
from rl.batch import pad_sequences, split_by_tokens
from rl.logprobs import token_logprobs
from rl.optim import lr_factor, set_lr
from rl.records import Completion, Sample

Pair = tuple[list[int], list[int]]  # prompt ids, response ids with the stop token


def supervised_loss(model: Transformer, pairs: list[Pair], denominator: int | None = None) -> torch.Tensor:
    """Return the sum of -log pi over the response tokens / denominator (default: their number); prompts carry no loss."""
    ids_BT, mask_BT = pad_sequences(pairs, model.device)
    logp_BT, _ = token_logprobs(model, ids_BT, mask_BT, temperature=1.0)
    return -logp_BT.sum() / (denominator or mask_BT.sum())


def train_supervised(
    model: Transformer,
    batch_at: Callable[[int], list[Pair]],
    optimizers: list[tuple[torch.optim.Optimizer, float]],
    *,
    steps: int,
    max_grad_norm: float,
    title: str,
    micro_batch_tokens: int | None = None,
    **schedule,
) -> list[float]:
    """Train a model and return the loss of each step.

    Args:
        batch_at: returns the batch of a step; a pure function, so that a run can be repeated.
        optimizers: each with its peak learning rate, over its own part of the parameters.
        micro_batch_tokens: tokens of one forward and backward; None: the whole batch at once. The loss is the same.
        schedule: warmup_steps, schedule and decay_share of `lr_factor`.

    Raises:
        RuntimeError: a gradient that is not finite; the weights are those of the last good step.
    """
    model.train()
    losses = []
    bar = tqdm(range(steps), desc=title, mininterval=1.0)
    for step in bar:
        # gradient of the batch, with one denominator for all its parts
        pairs, loss = batch_at(step), 0.0
        tokens = sum(len(response) for _, response in pairs)
        for part in split_pairs(pairs, micro_batch_tokens):
            part_loss = supervised_loss(model, part, tokens)
            part_loss.backward()
            loss += part_loss.item()

        # clip and step
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm, error_if_nonfinite=True)
        for optimizer, lr in optimizers:
            set_lr(optimizer, lr * lr_factor(step, total_steps=steps, **schedule))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    model.eval()
    return losses


def split_pairs(pairs: list[Pair], budget: int | None) -> list[list[Pair]]:
    """Split a batch into parts of at most `budget` tokens; None: one part, in the given order."""
    if budget is None:
        return [pairs]
    samples = [Sample(prompt, Completion(response, [], "stop"), "", "refine") for prompt, response in pairs]
    return [[(sample.prompt_ids, sample.completion.ids) for sample in part] for part in split_by_tokens(samples, budget)]
