"""Learning rates and Muon."""

import pytest
import torch

from rl.optim import Muon, lr_factor, orthogonalise


def test_schedules():
    """Bug guarded: a first step at learning rate 0, a decay that never ends or goes below 0."""
    constant = [lr_factor(s, warmup_steps=4, total_steps=10, schedule="constant") for s in range(10)]
    assert constant == [0.25, 0.5, 0.75] + [1.0] * 7
    for schedule in ("linear", "cosine"):
        factors = [lr_factor(s, warmup_steps=2, total_steps=10, schedule=schedule, decay_share=0.5) for s in range(11)]
        assert factors[1:6] == [1.0] * 5
        assert factors[5:] == sorted(factors[5:], reverse=True)
        assert factors[10] == pytest.approx(0, abs=1e-12)


def test_muon_orthogonalises():
    """Bug guarded: an update whose singular values are those of the gradient."""
    matrix = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    for shape in (matrix, matrix.T):
        stack = orthogonalise(torch.stack((shape, 1e3 * shape.flip(0))), 5)
        values = torch.linalg.svdvals(stack)
        assert 0.6 < values.min() <= values.max() < 1.3
        torch.testing.assert_close(stack[1], stack[0].flip(0))
    weight = torch.nn.Parameter(torch.zeros(24, 8))
    optimizer = Muon([weight], lr=0.1)
    (weight * matrix).sum().backward()
    optimizer.step()
    assert (weight * matrix).sum() < 0, "a step down the gradient"
