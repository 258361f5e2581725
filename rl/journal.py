"""What each step leaves behind: a line of metrics, its rollouts, and a word where something looks odd."""

from collections import Counter
from collections.abc import Callable

from rl.clock import Clock
from rl.config import Config
from rl.evaluation.division import trial_metrics
from rl.metrics import SandbaggingWatch, rollout_metrics
from rl.records import Group
from rl.run_folder import RunFolder


class Journal:
    """Writes the steps of a run down, one after another; of a continued run from where it stopped.

    Args:
        say: prints a line.
    """

    def __init__(self, run: RunFolder, config: Config, say: Callable[[str], None]) -> None:
        before = run.read_metrics()
        self.run, self.config, self.say = run, config, say
        self.watch = SandbaggingWatch(config, before)
        self.num_tokens = before[-1]["num_tokens"] if before else 0

    def write(self, done: int, groups: list[Group], more: dict[str, float], clock: Clock) -> dict[str, float]:
        """Log the step that makes `done` steps.

        Args:
            more: metrics of other than the rollout's samples: of the judge, the update, an evaluation.
            clock: its seconds are logged; it begins anew.

        Returns:
            All metrics of the step.
        """
        metrics = rollout_metrics(groups, self.config) | more
        if self.config.model is None:
            metrics |= trial_metrics(groups)
        self.num_tokens += metrics["num_tokens"]
        metrics["num_tokens"] = self.num_tokens
        metrics |= clock.metrics(metrics["completions/num_tokens"], metrics.get("trained_tokens", 0))
        self.run.log(done, metrics)
        self.run.log_rollouts(done, groups)
        if not any(sample.trained for group in groups for sample in group.refine_samples):
            self.say(f"step {done}: nothing to train on ({dropped_reasons(groups)}); no optimizer step, going on")
        if warning := self.watch.warning(metrics):
            self.say(f"step {done}: {warning}")
        return metrics


def dropped_reasons(groups: list[Group]) -> str:
    """Why the groups of a step are not trained on, with counts."""
    counts = Counter(group.dropped or "responses left out of the loss" for group in groups)
    return ", ".join(f"{count} x {reason}" for reason, count in counts.items())
