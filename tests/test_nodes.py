"""torchrun as people start it: a rank that raises, nodes that die, and the run that goes on from its checkpoint."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, flags, lines_of
from test_distributed import free_port

pytestmark = pytest.mark.slow

WAIT = 400  # seconds; a busy machine takes minutes to start a few processes
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(command: list[str], output: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    # otherwise the agent that stays does not tell one that takes another's place where the store is, and both wait in vain
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with output.open("w") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)


def descendants(process: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    below = [int(number) for number in children.read_text().split()] if children.exists() else []
    return [process, *(d for child in below for d in descendants(child))]


def kill_all(process: subprocess.Popen) -> None:
    for number in descendants(process.pid):
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has ended by itself
    process.wait()


def test_a_mistake_that_only_rank_0_sees_is_one_line(place, tmp_path):
    """Bug guarded: a traceback of the other ranks, whose connection broke, under the line that says what to do."""
    run = place / "runs" / "broken"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("rubbish\n")
    launch = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--", "train.py", *flags(place, "broken", "--resume", "auto")]
    assert start(launch, tmp_path / "out").wait(WAIT) != 0
    ours = (tmp_path / "out").read_text().split("ChildFailedError")[0]
    assert ours.count("error: ") == 1
    assert "line 1 is not a metrics record" in ours
    assert "ends after the failure" not in ours
    assert " of 2 failed:" not in ours


def test_a_rank_that_raises_ends_the_run_and_its_traceback_comes_first(place, tmp_path):
    """Bug guarded: a run that hangs until a time-out of hours, or a log in which the cause is below its consequences."""
    log = tmp_path / "log"
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--", "tests/faulty_run.py", "raise", "1"]
    process = start([*command, *flags(place, "raises")], log)
    try:
        assert process.wait(timeout=WAIT) != 0
    finally:
        kill_all(process)
    said = log.read_text()
    ours = said[: said.index("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")]
    assert ours.index("rank 1 of 2 failed:") < ours.index("RuntimeError: made up by the test")
    assert "rank 0 of 2 ends after the failure of another one" in ours
    assert re.search(r"Root Cause.*?rank\s*: 1 ", said, re.DOTALL), "torchrun blames the wrong process"


def agent(number: int, port: int, fault: str, place: Path, output: Path) -> subprocess.Popen:
    is_host = int(number == 0)  # the first holds the rendezvous
    return start(
        [
            *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=nodes",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", "--max-restarts=3",
            f"--rdzv-conf=is_host={is_host},keep_alive_interval=1", "--", "tests/faulty_run.py", fault, "1",
            *flags(place, "nodes", "--resume", "auto", "--steps", "6", "--save-every", "1"),
        ],
        output,
    )  # fmt: skip


def test_two_nodes_with_a_process_and_then_a_machine_that_die(place, tmp_path):
    """Bug guarded: a run of several nodes that cannot begin, that hangs when a process or a machine dies, or starts over."""
    port, run = free_port(), place / "runs/nodes"
    logs = [tmp_path / f"{n}.log" for n in range(3)]
    agents = [agent(n, port, "die", place, logs[n]) for n in range(2)]  # the process of node 1, in step 3
    try:
        deadline = time.monotonic() + WAIT
        while not (run / "rollouts/step_000004.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        kill_all(agents[1])
        agents[1] = agent(1, port, "none", place, logs[2])  # a scheduler puts another machine in its place
        codes = [process.wait(timeout=WAIT) for process in agents]
    finally:
        for process in agents:
            kill_all(process)
    said = "".join(log.read_text() for log in logs if log.exists())
    assert codes == [0, 0], said
    assert [row["step"] for row in lines_of(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (run / "summary.json").exists()
    begun = [int(step) for step in re.findall(r"going on after step (\d)", said)]
    assert begun[:2] == [0, 2], "it began anew after the death of a process"
    assert begun[2] >= 3, "it began anew after the death of a node"
