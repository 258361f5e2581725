"""The way that CUDA takes, without a GPU: exact stand-ins for its kernels on a CPU, and its operators on tensors without data.

What the kernels themselves compute, and the graphs, only a GPU can show: test_gpu.py.
"""

from itertools import pairwise

import pytest
import torch
from conftest import make_model, random_prompts
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import model.attention
import model.kv_cache
from model.attention import flash_attention
from model.kv_cache import flash_decode
from model.transformer import head_logits
from rl.logprobs import token_logprobs
from rl.records import Request
from rl.sampler import Sampler


def exact_attention(q_THD: Tensor, k_UKD: Tensor, v_UKD: Tensor, cu_q, cu_k, used=None, *, causal: bool) -> Tensor:
    """What the variable-length kernel is documented to do, sequence by sequence; causal counts from the end of the keys."""
    outs = []
    for n, ((q0, q1), (k0, k1)) in enumerate(zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True)):
        k1 = k1 if used is None else k0 + int(used[n])
        q, k, v = q_THD[q0:q1], k_UKD[k0:k1], v_UKD[k0:k1]
        group = q.shape[1] // k.shape[1]
        scores = torch.einsum("thd,uhd->htu", q, k.repeat_interleave(group, 1)) / q.shape[-1] ** 0.5
        if causal:
            hidden = torch.arange(k1 - k0) > torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
            scores = scores.masked_fill(hidden, -torch.inf)
        outs.append(torch.einsum("htu,uhd->thd", scores.softmax(-1), v.repeat_interleave(group, 1)))
    return torch.cat(outs)


@pytest.fixture
def as_if_cuda(monkeypatch):
    """Every tensor passes for one that the flash kernels take; returns the names of the kernels that were called."""
    called = []

    def attend(q, k, v, cu_q, cu_k, longest_q, longest_k):
        called.append("attention")
        assert (longest_q, longest_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        return exact_attention(q, k, v, cu_q, cu_k, causal=True)

    def decode(q_BHD, k_BMKD, v_BMKD, cu_q, cu_k, length_B):
        called.append("decode")
        assert length_B.dtype == cu_q.dtype == cu_k.dtype == torch.int32
        return exact_attention(q_BHD, k_BMKD.flatten(0, 1), v_BMKD.flatten(0, 1), cu_q, cu_k, length_B, causal=False)

    for module in (model.attention, model.kv_cache):
        monkeypatch.setattr(module, "has_flash_kernels", lambda x: True)
    monkeypatch.setattr(model.attention, "flash_attention", attend)
    monkeypatch.setattr(model.kv_cache, "flash_decode", decode)
    return called


def test_logprobs_through_the_kernels_are_the_cpus(family, as_if_cuda, monkeypatch):
    """Bug guarded: sequences given each other's bounds, a prompt's keys left out or in the wrong order, and their gradients."""
    net = make_model(family)
    prompt, other = random_prompts((5, 3))
    rows = [prompt + tail for tail in random_prompts((4, 1, 6), seed=2)] + [
        other + tail for tail in random_prompts((2, 7), seed=3)
    ]
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for b, row in enumerate(rows):
        mask_BT[b, 5 if b < 3 else 3 : len(row)] = True
    weight_BT = torch.randn(ids_BT.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run() -> list[Tensor]:
        net.zero_grad()
        logp_BT, entropy_BT = token_logprobs(net, ids_BT, mask_BT, temperature=0.7)
        (logp_BT * weight_BT).sum().backward()
        return [logp_BT.detach(), entropy_BT, *(p.grad.clone() for p in net.parameters())]

    through_kernels = run()
    assert set(as_if_cuda) == {"attention"}
    monkeypatch.undo()
    for a, b in zip(through_kernels, run(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_the_sampler_draws_the_same_through_the_kernels(family, as_if_cuda, monkeypatch):
    """Bug guarded: a row that attends to another slot's keys, to stale ones behind its own, or not to its newest."""
    net = make_model(family)
    asked = [Request(p, 5, 18 + n, 0.9, n) for n, p in enumerate(random_prompts((5, 11, 1, 9)))]

    def draw() -> list[list[list[int]]]:
        sampler = Sampler(net, stop_ids=[0, 1, 2], max_slots=6, max_len=64, sync_every=3)
        return [[completion.ids for completion in group] for group in sampler.generate(asked)]

    drawn = draw()
    assert set(as_if_cuda) == {"attention", "decode"}
    monkeypatch.undo()
    assert drawn == draw()


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(28, 4, 128), (32, 8, 128), (14, 2, 64)])
def test_operators_take_what_they_are_given_on_cuda(heads, kv_heads, size):
    """Bug guarded: an argument that this torch's kernel does not know, a dtype or layout that it refuses."""
    cuda = torch.device("cuda", 0)
    with FakeTensorMode(), torch.no_grad():

        def empty(*shape: int, dtype=torch.bfloat16) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=cuda)

        q, k, v = (empty(30, h, size) for h in (heads, kv_heads, kv_heads))
        bounds = empty(4, dtype=torch.int32)
        out = flash_attention(q, k, v, bounds, bounds, 20, 20)
        assert (out.shape, out.dtype, out.device) == (q.shape, torch.bfloat16, cuda)
        slots = empty(3, 64, kv_heads, size)
        out = flash_decode(empty(3, heads, size), slots, slots, bounds, bounds, empty(3, dtype=torch.int32))
        assert (out.shape, out.dtype, out.device) == ((3, heads, size), torch.bfloat16, cuda)
        for dtype in (torch.bfloat16, torch.float32):  # of the weights
            logits = head_logits(empty(5, 96), empty(1000, 96, dtype=dtype))
            assert (logits.shape, logits.dtype, logits.device) == ((5, 1000), torch.float32, cuda)
