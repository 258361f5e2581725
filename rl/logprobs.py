"""log pi(y_t): the log-probability of each token given those before it. The only place with the shift by one.

The policy, the old policy and the reference all come through here, at the temperature the tokens were sampled at. The
[tokens, vocabulary] matrix is never held: it is made a chunk at a time, and again in backward.

Shapes: B sequences, T tokens, N scored tokens, E embedding, V vocabulary.
"""

import torch
from torch import Tensor

from model.attention import PackedAttention
from model.precision import at_least_fp32
from model.shared_prefix import SharedPrefixAttention
from model.transformer import Transformer, head_logits

CHUNK_ELEMENTS = 2**25  # logits held at once, in elements


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(h W^T / T)[target] and the entropy of that softmax, for N hidden states.

    Forward keeps only the log-normaliser of each row; backward recomputes the logits chunk by chunk and accumulates the
    gradient of W in at least float32. The entropy carries no gradient.
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
        grad_weight_VE = torch.zeros_like(weight_VE, dtype=lse_N.dtype)
        head_VE = weight_VE.to(hidden_NE.dtype)
        for begin in range(0, len(hidden_NE), ctx.chunk):
            rows = slice(begin, begin + ctx.chunk)
            scale = grad_N[rows, None] / ctx.temperature
            logits = head_logits(hidden_NE[rows], head_VE).div_(ctx.temperature)
            grad_logits = logits.sub_(lse_N[rows, None]).exp_().mul_(-scale)  # d logp = onehot - softmax
            grad_logits.scatter_add_(1, target_N[rows, None], scale.to(grad_logits.dtype))
            grad_logits = grad_logits.to(hidden_NE.dtype)
            grad_hidden_NE[rows] = grad_logits @ head_VE
            grad_weight_VE += grad_logits.T @ hidden_NE[rows]
        return grad_hidden_NE, grad_weight_VE.to(weight_VE.dtype), None, None, None


def token_logprobs(
    model: Transformer,
    ids_BT: Tensor,
    mask_BT: Tensor | None = None,
    *,
    temperature: float,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each token, and the entropy of the distribution it was drawn from.

    The model runs over packed real tokens: nothing behind the last scored token of a row is computed.

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
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool().clone()
    mask_BT[:, 0] = False
    column_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    length_B = torch.where(mask_BT, column_T + 1, 0).amax(1)  # up to the last scored token
    real_BT = column_T < length_B[:, None]
    lengths = [length for length in length_B.tolist() if length]
    if not lengths:
        nothing_BT = torch.zeros(ids_BT.shape, dtype=at_least_fp32(model.lm_head.weight).dtype, device=ids_BT.device)
        return nothing_BT, nothing_BT.clone()
    logp_T, entropy_T = packed_logprobs(model, ids_BT[real_BT], lengths, mask_BT[real_BT], temperature=temperature, chunk=chunk)
    zeros_BT = logp_T.new_zeros(ids_BT.shape)
    return zeros_BT.masked_scatter(real_BT, logp_T), zeros_BT.masked_scatter(real_BT, entropy_T)


def packed_logprobs(
    model: Transformer,
    ids_T: Tensor,
    lengths: list[int],
    mask_T: Tensor | None = None,
    *,
    temperature: float,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` of several sequences packed end to end, without padding.

    Args:
        ids_T: the sequences, one after another.
        lengths: tokens of each sequence, none of them empty.
        mask_T: tokens to score; default all but the first of each sequence, which is never scored.

    Returns:
        logp_T and entropy_T; 0 where not scored.
    """
    positions_T = torch.cat([torch.arange(length) for length in lengths]).to(ids_T.device)
    mask_T = torch.ones_like(ids_T, dtype=torch.bool) if mask_T is None else mask_T.bool()
    mask_T = mask_T & (positions_T > 0)
    attention = PackedAttention(lengths, ids_T.device)
    before_T = torch.where(mask_T)[0] - 1  # the state before a token predicts it
    head = _scoring(before_T, ids_T[mask_T], temperature, chunk)
    logp_N, entropy_N = model(ids_T[None], positions_T[None], cache=attention, head=head)
    zeros_T = logp_N.new_zeros(ids_T.shape)
    return zeros_T.masked_scatter(mask_T, logp_N), zeros_T.masked_scatter(mask_T, entropy_N)


def shared_prompt_logprobs(
    model: Transformer,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    temperature: float,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` that computes a prompt once for all rows that continue it.

    A row's prompt is everything before its first scored token. Rows that follow one another with the same prompt share it.

    Args:
        mask_BT: tokens to score: of every row those from its prompt on, at least one.

    Returns:
        logp_BT and entropy_BT; 0 where not scored.
    """
    column_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    mask_BT = mask_BT.bool()
    prompt_B, scored_B = mask_BT.int().argmax(1), mask_BT.sum(1)
    is_prompt_BT = column_T < prompt_B[:, None]
    differs_BT = (ids_BT != ids_BT.roll(1, 0)) & is_prompt_BT
    begins_B = differs_BT.any(1) | (prompt_B != prompt_B.roll(1)) | (torch.arange(len(ids_BT), device=ids_BT.device) == 0)
    groups: list[tuple[int, list[int]]] = []
    for begins, prompt, scored in torch.stack((begins_B, prompt_B, scored_B), dim=1).tolist():
        if begins:
            groups.append((prompt, []))
        groups[-1][1].append(scored)
    attention = SharedPrefixAttention(groups, ids_BT.device)
    computed_BT = mask_BT | (is_prompt_BT & begins_B[:, None])
    head = _scoring(attention.before_suffixes, ids_BT[mask_BT], temperature, chunk)
    logp_N, entropy_N = model(ids_BT[computed_BT][None], attention.positions_1T, cache=attention, head=head)
    zeros_BT = logp_N.new_zeros(ids_BT.shape)
    return zeros_BT.masked_scatter(mask_BT, logp_N), zeros_BT.masked_scatter(mask_BT, entropy_N)


def _scoring(before_N: Tensor, target_N: Tensor, temperature: float, chunk: int | None):
    """What the model's head does with its hidden states: log-probs and entropies of tokens, from the states before them."""
    if temperature <= 0:
        raise ValueError(f"log-probs need a temperature above 0, got {temperature}: a greedy policy has none")

    def score(hidden_1TE: Tensor, weight_VE: Tensor) -> tuple[Tensor, Tensor]:
        rows = chunk or max(1, CHUNK_ELEMENTS // len(weight_VE))
        return ChunkedLogProbs.apply(hidden_1TE[0, before_N], weight_VE, target_N, temperature, rows)

    return score
