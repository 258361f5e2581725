"""The log of a step: counts that go on where the run stopped, and a line where something looks wrong."""

from samples import GOOD, rollout_config, sample

from rl.metrics import Clock
from rl.records import Group
from rl.run.advice import dropped_reasons
from rl.run.folder import StepLog


class Folder:
    """A run folder that keeps what is logged."""

    def __init__(self, before: list[dict]) -> None:
        self.before, self.logged, self.rollouts = before, [], []

    def read_metrics(self) -> list[dict]:
        return self.before

    def log(self, step: int, metrics: dict) -> None:
        self.logged.append((step, metrics))

    def log_rollouts(self, step: int, groups: list[Group]) -> None:
        self.rollouts.append((step, groups))


def step_of(accuracy: float = 1.0, trained: bool = True) -> list[Group]:
    """One question with two samples of a prompt and a new token each, and r̄."""
    group = Group("a", "274/39", "7", refine_samples=[sample(GOOD, accuracy=1.0) for _ in range(2)], baseline=accuracy)
    group.plain_samples = [sample("7", "plain", accuracy=accuracy)]
    for one in group.refine_samples:
        one.trained, one.reward, one.format, one.refine = trained, 1.0, 1.0, 0.0
    group.dropped = "" if trained else "equal rewards"
    return [group]


def test_tokens_are_counted_over_the_whole_run():
    """Bug guarded: a count that starts anew with each step or each resumed run."""
    folder = Folder([{"step": 1, "num_tokens": 100}])
    log = StepLog(folder, rollout_config(), print)
    found = [log.log_step(step, step_of(), {}, Clock())["num_tokens"] for step in (2, 3)]
    assert found == [106, 112]
    assert [(step, row["num_tokens"]) for step, row in folder.logged] == [(2, 106), (3, 112)]
    assert [step for step, _ in folder.rollouts] == [2, 3]
    assert StepLog(Folder([]), rollout_config(), print).log_step(1, step_of(), {}, Clock())["num_tokens"] == 6


def test_what_others_measured_is_logged_with_it():
    """Bug guarded: a metric of the update lost or overwritten; a rate that leaves out what was trained on."""
    clock = Clock()
    with clock("update"):
        pass
    more = {"trained_tokens": 50, "loss": 0.5, "completions/mean_length": 9.0}
    metrics = StepLog(Folder([]), rollout_config(), print).log_step(1, step_of(), more, clock)
    assert {name: metrics[name] for name in more} == more
    assert metrics["perf/train_tokens_per_s"] > 0
    assert "time/update" in metrics


def test_a_step_without_training_is_printed_with_its_reasons():
    """Bug guarded: a run that stands still without a word, or a word at every step."""
    printed = []
    log = StepLog(Folder([]), rollout_config(), printed.append)
    log.log_step(1, step_of(), {}, Clock())
    assert printed == []
    log.log_step(2, step_of(trained=False), {}, Clock())
    assert printed == ["step 2: nothing to train on (1 x equal rewards); no optimizer step, going on"]
    kept, dropped = step_of()[0], step_of(trained=False)[0]
    assert dropped_reasons([kept, dropped, dropped]) == "1 x responses left out of the loss, 2 x equal rewards"


def test_a_fall_of_plain_answers_is_printed_although_the_run_was_resumed():
    """Bug guarded: plain answers compared with those since the last resumption alone, or compared and not told."""
    before = [{"step": 1, "num_tokens": 0, "pasr/plain_accuracy": 0.9, "pasr/plain_wellformed": 1.0}]
    printed = []
    config = rollout_config(questions_per_step=256, plain_policy="current")  # every step is a window
    StepLog(Folder(before), config, printed.append).log_step(2, step_of(0.5), {}, Clock())
    assert len(printed) == 1
    assert "step 2: sandbagged baseline? plain accuracy fell from 0.90 to 0.50" in printed[0]
