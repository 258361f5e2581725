"""train.py, slowly, and with a fault on one rank: for the tests that start it with torchrun. Not a test by itself.

faulty_run.py none|raise|die RANK FLAGS...    in the third optimizer step, and only before any restart
"""

import os
import signal
import sys
import time

import pytest
import torch
from conftest import pay_for_length

import train
from rl.distributed import rank
from rl.run.processes import leave

torch.set_num_threads(1)
fault, where = sys.argv[1], int(sys.argv[2])
step, calls = train.optimizer_step, []


def faulty(*args) -> None:
    calls.append(1)
    time.sleep(0.2)
    if len(calls) == 3 and rank() == where and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        if fault == "raise":
            raise RuntimeError("made up by the test")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    step(*args)


with pytest.MonkeyPatch.context() as patch:
    pay_for_length(patch)
    patch.setattr(train, "optimizer_step", faulty)
    code = train.main(sys.argv[3:])
leave(code)
