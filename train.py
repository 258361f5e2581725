"""PASR: reinforcement learning of proactive self-refinement (arXiv 2508.12903).

    python train.py                                             the demo: a tiny model learns when to refine, on a laptop
    python train.py --model Qwen/Qwen2.5-7B --data train.jsonl  a real model and your questions
    python train.py --help                                      every flag

`train` is Eq. 1, maximise E[R]. Each line of its loop leads to one equation of the paper.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tqdm import tqdm

from rewards.chat_server import JudgeRefusedError
from rl import demo
from rl.checkpoint import save_checkpoint
from rl.clock import Clock
from rl.config import Config, parse_config
from rl.distributed import gather, is_main, leave, one_voice, pick_device, process_group, say_once
from rl.evaluation.session import evaluate_step, evaluate_task, is_evaluated
from rl.journal import Journal
from rl.judging import JudgeUnavailable, StoppedWhileWaiting
from rl.memory.table import plan_text
from rl.report import write_report
from rl.rollout import assign_rewards
from rl.selection import select_samples
from rl.setup import Session, open_session
from rl.signals import StopSignals
from rl.user_errors import one_line_errors

BAR_FORMAT = "{n_fmt}/{total_fmt} |{bar:4}| {elapsed}<{remaining}{postfix}"  # fits into 100 columns


def train(session: Session) -> bool:
    """Eq. 1: ascend E[R] by policy gradients, one rollout batch a step. False if a signal stopped it before the last."""
    config, rollout, updater = session.config, session.rollout, session.updater
    bar = progress_bar(session.first_step, config.steps)
    clock, journal = Clock(), Journal(session.run, config, bar.write)
    with StopSignals() as stop:
        for step in bar:
            questions = session.stream.take(step, config.questions_per_step)  # x
            with clock("rollout"), stop_without_judge(session, step):
                groups = rollout.collect(questions, step)  # y, y' ~ pi. Eq. 4: format. Eq. 5: accuracy; r̄ of plain answers
                assign_rewards(groups, config)  # Eq. 6: refinement, against r̄. Eq. 7: total reward
            with clock("update"):
                samples = select_samples(groups, config)  # Eq. 2: advantages
                update = updater.update(samples, groups, step)  # Eq. 3: clipped objective with KL
            with clock("sync"):
                rollout.take_weights(version=updater.optimizer_steps)  # the next rollout is on-policy

            done, evaluation = step + 1, {}
            if is_evaluated(session, done):
                with clock("eval"):
                    evaluation = evaluate_step(session, done, bar.write)
            metrics = journal.write(done, groups, rollout.metrics | update | evaluation, clock)
            show_progress(bar, metrics)
            stopped_by = next(filter(None, gather(stop.received)), None)
            keep(session, done, metrics, stopped_by)
            clock.restart()  # keeping belongs to no step
            if stopped_by and done < config.steps:
                bar.close()
                print(f"stopped by {stopped_by} after step {done}; {how_to_go_on(session.run.path)}")
                return False
    return True


def progress_bar(first_step: int, steps: int) -> tqdm:
    shape = dict(initial=first_step, total=steps, bar_format=BAR_FORMAT)
    return tqdm(range(first_step, steps), **shape, disable=not is_main())


def keep(session: Session, done: int, metrics: dict[str, float], stopped_by: str | None) -> None:
    """Save a checkpoint and write the report, where they are due."""
    config = session.config
    is_best = session.best.update(done, metrics)
    is_due = config.save_every > 0 and done % config.save_every == 0
    if is_due or is_best or stopped_by or done == config.steps:
        save(session, done)
    if is_main() and (is_due or stopped_by or is_evaluated(session, done)):
        write_report([session.run.path])


@contextmanager
def stop_without_judge(session: Session, step: int) -> Iterator[None]:
    """Save and leave when the judge stays away: nothing is trained on the scores that happened to arrive."""
    try:
        yield
    except (JudgeUnavailable, JudgeRefusedError) as error:
        save(session, step)
        by_signal = isinstance(error, StoppedWhileWaiting)
        why = f"stopped by {error} after step {step}" if by_signal else f"stopped after step {step}: {error}"
        print(f"\n{why}; {how_to_go_on(session.run.path)}")
        raise SystemExit(0 if by_signal else 1) from error


def save(session: Session, step: int) -> None:
    best = session.best
    save_checkpoint(session.run.path, step, session.updater, session.renderer, session.source, session.config.keep, best.step)
    best.save(session.run.path)


def how_to_go_on(run: Path) -> str:
    return f"go on with the same flags and --runs-dir {run.parent} --run {run.name} --resume auto"


def show_progress(bar: tqdm, metrics: dict[str, float]) -> None:
    bar.set_postfix_str(
        f"reward {metrics['reward']:.2f}, acc {metrics['pasr/refined_accuracy']:.2f} "
        f"(plain {metrics.get('pasr/plain_accuracy', float('nan')):.2f}), "
        f"refining {metrics['pasr/refine_frac']:.0%}, {metrics['perf/rollout_tokens_per_s']:.0f} tok/s"
    )


def run_demo(session: Session) -> dict | None:
    """Train on the embedded task, evaluate before and after, and say in words what changed. None if stopped by a signal."""
    before = evaluate_task(session, 0)
    print(f"before RL: {demo.one_line(before.metrics)}")
    for problem in demo.warm_start_problems(before.metrics):
        print(f"warning: the warm-started model is not ready for RL: {problem}")
    if not train(session):
        return None
    after = evaluate_task(session, session.config.steps)
    print(f"\n{demo.result_table(before.metrics, after.metrics)}\n\n{demo.example_answers(before, after)}\n")
    for problem in demo.end_problems(before.metrics, after.metrics):
        print(f"warning: {problem}")
    return {"before": before.metrics, "after": after.metrics}


def run_real(session: Session) -> dict | None:
    """Train on the user's questions, evaluated before, after and in between if so told. None if stopped by a signal."""
    run, best = session.run, session.best
    if session.evaluation is not None and session.first_step == 0 and not run.read_metrics():
        before = evaluate_step(session, 0)
        best.update(0, before)
        run.log(0, {"num_tokens": 0} | before)
    if not train(session):
        return None
    if best.step == 0:
        print(f"no step was better than the initial model by {best.metric}: there is no checkpoint of the best")
    chosen = {"best": {"metric": best.metric, "step": best.step, "value": best.value}} if best.metric else {}
    return {"last": run.read_metrics()[-1]} | chosen


def main(argv: list[str] | None = None) -> int:
    begin = (time.perf_counter(), time.process_time())
    with one_voice(), one_line_errors():
        config = parse_config(argv)
        if config.plan:
            print(plan_text(config))
            return 0
        pick_device(config.device)  # a GPU that is not there is a mistake to be told in one line
    with process_group(config.device, config.dist_timeout):
        return run_training(config, begin)


def run_training(config: Config, begin: tuple[float, float]) -> int:
    with one_line_errors():
        session = open_session(config)
    if session is None:
        print(f"{config.runs_dir}/{config.run} is finished; nothing to do")
        return 0
    with closing(session.run) as run, closing(session.rollout.scorer):
        run.start_wandb(config)
        print(f"run folder: {run.path}")
        print("a GRPO loss near 0 is expected: the advantages of a group add up to 0. Watch the reward")
        result = run_demo(session) if config.model is None else run_real(session)
        if result is not None:
            times = {"wall_s": time.perf_counter() - begin[0], "cpu_s": time.process_time() - begin[1]}
            run.finish({"steps": config.steps} | {name: round(value, 1) for name, value in times.items()} | result)
            if is_main():
                print(f"report: {write_report([run.path])}")
            print(f"finished in {times['wall_s']:.0f} s; talk to the model: python evaluate.py --model {run.path}")
    return 0


if __name__ == "__main__":
    try:
        leave(main())
    except KeyboardInterrupt:  # while training it would have been a stop signal
        say_once("interrupted outside of training; --resume auto goes on from the newest checkpoint, if there is one")
        leave(130)
