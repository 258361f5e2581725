"""Supervised fine-tuning: maximise log pi of given responses. Warm start of the embedded task's model.

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


def supervised_loss(model: Transformer, pairs: list[Pair]) -> torch.Tensor:
    """Mean of -log pi over the response tokens of a batch; the prompts carry no loss."""
    ids_BT, mask_BT = pad_sequences(pairs, model.device)
    logp_BT, _ = token_logprobs(model, ids_BT, mask_BT, temperature=1.0)
    return -logp_BT.sum() / mask_BT.sum()


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
) -> None:
    """Train in place.

    Args:
        batch_at: the batch of a step; a pure function, so that a run can be repeated.
        optimizers: each over its own part of the parameters, with its peak learning rate.
        steps, warmup_steps, schedule, decay_share: see `lr_factor`.
        title: of the progress bar.
    """
    model.train()
    bar = tqdm(range(steps), desc=title, mininterval=1.0)
    for step in bar:
        loss = supervised_loss(model, batch_at(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        factor = lr_factor(step, warmup_steps=warmup_steps, total_steps=steps, schedule=schedule, decay_share=decay_share)
        for optimizer, lr in optimizers:
            set_lr(optimizer, lr * factor)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
