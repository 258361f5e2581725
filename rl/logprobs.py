"""log pi(y_t): the log-probability of each token given those before it. The only place with the shift by one.

The policy, the old policy and the reference all come through here, at the temperature the tokens were sampled at. The
[tokens, vocabulary] matrix is never held: it is made a chunk at a time, and again in backward.

Shapes: B sequences, T tokens, N scored tokens, E embedding, V vocabulary.
"""

import torch
from torch import Tensor

from model.attention import PackedAttention, group_rows
from model.transformer import Transformer, at_least_fp32, head_logits

CHUNK_ELEMENTS = 2**25  # logits held at once, in elements


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(h W^T / T)[target] and the entropy of that softmax, for N hidden states.

    Forward keeps only the log-normaliser of each row; backward recomputes the logits chunk by chunk and accumulates the
    gradient of W, if W is trained, in at least float32. The entropy carries no gradient.
    """

    @staticmethod
    def forward(ctx, hidden_NE, weight_VE, target_N, temperature, chunk):
        wide = torch.float64 if hidden_NE.dtype == torch.float64 else torch.float32
        logp_N, entropy_N, lse_N = (hidden_NE.new_empty(hidden_NE.shape[0], dtype=wide) for _ in range(3))
        head_VE = weight_VE.to(hidden_NE.dtype)  # once, not for every chunk
        for begin in range(0, len(hidden_NE), chunk):
            rows = slice(begin, begin + chunk)
            logits = head_logits(hidden_NE[rows], head_VE).div_(temperature)
            lse_N[rows] = logits.logsumexp(-1)
            logp_N[rows] = logits.gather(1, target_N[rows, None])[:, 0] - lse_N[rows]
            probs = (logits - lse_N[rows, None]).exp_()
            # a vocabulary row at -inf has probability 0 and adds nothing, where 0 * -inf would be NaN
            entropy_N[rows] = lse_N[rows] - probs.mul_(logits.clamp_(min=torch.finfo(wide).min)).sum(-1)
        ctx.save_for_backward(hidden_NE, weight_VE, target_N, lse_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N, _):
        hidden_NE, weight_VE, target_N, lse_N = ctx.saved_tensors
        grad_hidden_NE = torch.empty_like(hidden_NE)
        is_trained = ctx.needs_input_grad[1]  # adapters leave the head as it is: a third of this backward
        grad_weight_VE = torch.zeros_like(weight_VE, dtype=lse_N.dtype) if is_trained else None
        head_VE = weight_VE.to(hidden_NE.dtype)
        for begin in range(0, len(hidden_NE), ctx.chunk):
            rows = slice(begin, begin + ctx.chunk)
            scale = grad_N[rows, None] / ctx.temperature
            logits = head_logits(hidden_NE[rows], head_VE).div_(ctx.temperature)
            grad_logits = logits.sub_(lse_N[rows, None]).exp_().mul_(-scale)  # d logp = onehot - softmax
            grad_logits.scatter_add_(1, target_N[rows, None], scale.to(grad_logits.dtype))
            grad_logits = grad_logits.to(hidden_NE.dtype)
            grad_hidden_NE[rows] = grad_logits @ head_VE
            if is_trained:
                grad_weight_VE += grad_logits.T @ hidden_NE[rows]
        return grad_hidden_NE, grad_weight_VE.to(weight_VE.dtype) if is_trained else None, None, None, None


def token_logprobs(
    model: Transformer, ids_BT: Tensor, mask_BT: Tensor | None = None, *, temperature: float, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute log pi(y_t) of each scored token, and the entropy of the distribution it was drawn from.

    The model runs over packed real tokens: nothing behind the last scored token of a row is computed. Rows that follow one
    another with the same prompt (everything before the first scored token) share it: it is computed once.

    Args:
        ids_BT: one sequence a row, padded on the right with any id.
        mask_BT: tokens to score (the completion); default all. Only their logits are computed. Column 0 has nothing before
            it and is never scored.
        temperature: logits are divided by it, as the sampler did.
        chunk: tokens whose logits are held at once; default from CHUNK_ELEMENTS.

    Returns:
        logp_BT (with gradient) and entropy_BT (without), at least float32; 0 where not scored.

    Raises:
        ValueError: temperature is not positive: a greedy policy has no log-probs.
    """
    if temperature <= 0:
        raise ValueError(f"log-probs need a temperature above 0, got {temperature}: a greedy policy has none")
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool().clone()
    mask_BT[:, 0] = False

    # which tokens are computed: prompts that are not shared with the row before, and what follows up to the last scored token
    groups, is_prompt_BT, begins_B, is_suffix_BT = group_rows(ids_BT, mask_BT)
    if not groups:
        nothing_BT = torch.zeros(ids_BT.shape, dtype=at_least_fp32(model.lm_head.weight).dtype, device=ids_BT.device)
        return nothing_BT, nothing_BT.clone()
    computed_BT = is_suffix_BT | (is_prompt_BT & begins_B[:, None])
    attention = PackedAttention(groups, ids_BT.device)

    # the state before a token predicts it: the only shift by one
    is_scored_N = mask_BT[is_suffix_BT]
    before_N, target_N = attention.before_suffixes[is_scored_N], ids_BT[mask_BT]

    def score(hidden_1TE: Tensor, weight_VE: Tensor) -> tuple[Tensor, Tensor]:
        rows = chunk or max(1, CHUNK_ELEMENTS // len(weight_VE))
        return ChunkedLogProbs.apply(hidden_1TE[0, before_N], weight_VE, target_N, temperature, rows)

    logp_N, entropy_N = model(ids_BT[computed_BT][None], attention.positions_1T, cache=attention, head=score)
    zeros_BT = logp_N.new_zeros(ids_BT.shape)
    return zeros_BT.masked_scatter(mask_BT, logp_N), zeros_BT.masked_scatter(mask_BT, entropy_N)
