"""Evaluating the policy of a run: when, on what, and what is kept of it."""

from collections.abc import Callable

from data.division import load_split
from data.examples import shuffled
from rl import demo
from rl.distributed import from_main
from rl.evaluation.division import Evaluation, evaluate_division
from rl.setup import Session


def is_evaluated(session: Session, done: int) -> bool:
    """Whether step `done` ends with an evaluation. The last step of a demo is evaluated when training is over."""
    config, is_last = session.config, done == session.config.steps
    if is_last:
        return session.evaluation is not None
    return config.eval_every > 0 and done % config.eval_every == 0


def evaluate_step(session: Session, step: int, say: Callable[[str], None] = print) -> dict[str, float]:
    """Evaluate after `step` steps, say how it went, and return what is to be logged with the step."""
    if session.evaluation is None:
        say(f"step {step}: {demo.one_line(evaluate_task(session, step).metrics)}")
        return {}
    with session.rollout.weights:
        metrics = session.evaluation.run(session.rollout.sampler, session.run.path / "eval" / f"step_{step:06d}.jsonl")
    say(f"step {step}: {session.evaluation.one_line(metrics)}")
    return metrics


def evaluate_task(session: Session, step: int) -> Evaluation:
    """Held-out questions of the embedded task after `step` steps; kept in eval/, so that a resumed run finds it."""
    config, file = session.config, session.run.path / "eval" / f"step_{step:06d}.json"
    if found := from_main(lambda: Evaluation.load(file) if file.exists() and step <= session.first_step else None):
        return found
    questions = shuffled(load_split(held_out=True), seed=0, epoch=0)[: config.eval_questions]
    with session.rollout.weights:
        result = evaluate_division(session.rollout.sampler, session.renderer, questions, config.max_new_tokens)
    from_main(lambda: result.save(file))
    return result
