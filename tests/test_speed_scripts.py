"""Scripts of benchmarks/ that are meant for a GPU run on a CPU, too."""

import re

import pytest
from conftest import run_command


@pytest.mark.parametrize("more", [(), ("--activation-checkpointing", "--micro-batch-tokens", "600")])
def test_one_step(more):
    """Bug guarded: a script that nobody has started since the code it measures was changed."""
    done = run_command("benchmarks/one_step.py", "--case", "tiny-1", "--device", "cpu", *more)
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[2:-1]] == [
        "sampling",
        "log-probs",
        "update, first",
        "update",
    ]
    gap = re.search(r"sampling_logp_difference/max ([\d.e+-]+)", done.stdout)
    assert float(gap[1]) < 1e-3
