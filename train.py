"""PASR: reinforcement learning of proactive self-refinement (arXiv 2508.12903).

    python train.py                                             the demo: a tiny model learns when to refine, on a laptop
    python train.py --model Qwen/Qwen2.5-7B --data train.jsonl  a real model and your questions
    python train.py --help                                      every flag

The whole step can be read here: `train` is the loop (Eq. 1), `update_policy` the gradient (Eq. 3). Each call that computes
something names its equation.

Shapes: B sequences of a micro-batch, T tokens.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain

import torch
from tqdm import tqdm

from rewards.judge import JudgeRefusedError, JudgeUnavailable, StoppedWhileWaiting
from rl import demo
from rl.advantages import select_samples
from rl.batch import MicroBatch, denominator, make_minibatches
from rl.config import Config, parse_config
from rl.distributed import gather, is_main, pick_device, print_once, sum_over_ranks, world_size
from rl.logprobs import token_logprobs
from rl.loss import grpo_loss
from rl.metrics import Clock, UpdateMetrics
from rl.optim import learning_rate, set_lr
from rl.records import Sample
from rl.report import write_report
from rl.rollout import assign_rewards
from rl.run.console import StopSignals, one_line_errors, wrapped
from rl.run.folder import StepLog
from rl.run.processes import leave, process_group, silence_other_ranks
from rl.session import Session, open_session
from rl.weights.exact_bf16 import prepare_gradients
from rl.weights.memory import plan_text
from rl.weights.policy import TrainState, clip_gradients

BAR_FORMAT = "{n_fmt}/{total_fmt} |{bar:4}| {elapsed}<{remaining}{postfix}"  # fits into 100 columns
MAX_SKIPPED_IN_A_ROW = 5


def train(session: Session) -> bool:
    """Maximise E[R] (Eq. 1) by policy gradients, one rollout batch a step. Return False if a signal stopped it early."""
    config, rollout, state = session.config, session.rollout, session.state
    first, steps = session.first_step, config.steps
    bar = tqdm(range(first, steps), initial=first, total=steps, bar_format=BAR_FORMAT, disable=not is_main())
    clock, log = Clock(), StepLog(session.run, config, bar.write, demo.trial_metrics if config.model is None else None)
    with StopSignals() as stop:
        for step in bar:
            # questions x of this step
            questions = session.stream.take(step, config.questions_per_step)

            # y', y ~ pi: G responses with the refine prompt and n plain answers to each question, judged as they end
            with clock("rollout"), stop_without_judge(session, step):
                groups = rollout.collect(questions, step)  # Eq. 4: format. Eq. 5: accuracy; r̄ of the plain answers

            # rewards and advantages
            assign_rewards(groups, config)  # Eq. 6: refinement, against r̄. Eq. 7: total reward
            samples = select_samples(groups, config)  # Eq. 2: advantages; groups that teach nothing are left out

            # theta <- theta + lr * gradient of Eq. 3
            with clock("update"):
                update = update_policy(state, samples, config, step)

            # the sampler gets the new weights: the next rollout is on-policy
            with clock("sync"):
                rollout.sync_weights(version=state.optimizer_steps)

            # what the step leaves behind: evaluation, metrics, rollouts, checkpoint, report
            done, evaluation = step + 1, {}
            if session.is_evaluated(done):
                with clock("eval"):
                    evaluation = session.evaluate(done, bar.write)
            metrics = log.log_step(done, groups, rollout.metrics | update | evaluation, clock)
            show_progress(bar, metrics)
            stopped_by = next(filter(None, gather(stop.received)), None)
            keep(session, done, metrics, stopped_by)
            clock.restart()  # keeping belongs to no step
            if stopped_by and done < steps:
                bar.close()
                print(f"stopped by {stopped_by} after step {done}; {session.how_to_go_on()}")
                return False
    return True


def update_policy(state: TrainState, samples: list[Sample], config: Config, step: int) -> dict[str, float]:
    """Ascend Eq. 3: `epochs_per_batch` passes over the samples of a rollout, `minibatches` optimizer steps each.

    All ranks have all samples and compute a share of them; the loss has one denominator for all ranks and micro-batches.

    Returns:
        Metrics; without samples no optimizer step is made, and loss, gradient and log-probs are not reported.

    Raises:
        RuntimeError: several steps in a row had a loss or gradient that is not finite.
    """
    lr, totals = learning_rate(config, step), UpdateMetrics(has_kl=config.beta > 0)
    set_lr(state.optimizer, lr)
    minibatches = make_minibatches(samples, config, step, state.policy.device)  # none without samples
    several_steps = config.epochs_per_batch * len(minibatches) > 1

    # log-probs that stay fixed while the policy moves
    begin = time.perf_counter()
    for micro in chain(*minibatches):
        score_old_and_reference(state, micro, config, totals if several_steps else None)
    logprob_time = time.perf_counter() - begin

    for micro_batches in minibatches * config.epochs_per_batch:
        # gradient of one optimizer step, summed over micro-batches and ranks
        prepare_gradients(state.optimizer)
        (divide_by,) = sum_over_ranks([denominator(micro_batches, config)])
        for micro in micro_batches:
            logp_BT, entropy_BT = token_logprobs(state.policy, micro.ids_BT, micro.mask_BT, temperature=config.temperature)
            if not micro.samples:
                (logp_BT.sum() * 0.0).backward()  # takes part in the collectives and adds nothing
                continue
            if not several_steps:
                totals.compare(logp_BT.detach(), micro)
            old_logp_BT = logp_BT.detach() if micro.old_logp_BT is None else micro.old_logp_BT
            loss, stats = grpo_loss(  # Eq. 3: clipped objective with KL
                logp_BT, old_logp_BT.to(logp_BT.dtype), micro.ref_logp_BT, micro.advantages_B.to(logp_BT.dtype), micro.mask_BT,
                clip_low=config.clip_low, clip_high=config.clip_high, beta=config.beta, aggregation=config.aggregation,
                denominator=divide_by,
            )  # fmt: skip
            (loss * world_size()).backward()  # sharded gradients are averaged over ranks; the denominator is of all of them
            totals.add(loss=loss, entropy=entropy_BT.sum(), **stats)

        # clip and step
        optimizer_step(state, config, totals)
    return {"learning_rate": lr, "optimizer_steps": state.optimizer_steps, "time/logprob": logprob_time} | totals.metrics()


@torch.no_grad()
def score_old_and_reference(state: TrainState, micro: MicroBatch, config: Config, totals: UpdateMetrics | None) -> None:
    """Set log pi_old(y_t) and log pi_ref(y_t) of a micro-batch.

    Args:
        totals: compares the policy with the sampler; None with a single optimizer step, whose old log-probs are its own.
    """
    if totals is not None:
        micro.old_logp_BT, _ = token_logprobs(state.policy, micro.ids_BT, micro.mask_BT, temperature=config.temperature)
        totals.compare(micro.old_logp_BT, micro)
    if config.old_logprobs == "sampler":
        micro.old_logp_BT = micro.sampler_logp_BT
    if config.beta > 0:
        micro.ref_logp_BT, _ = token_logprobs(state.reference, micro.ids_BT, micro.mask_BT, temperature=config.temperature)


def optimizer_step(state: TrainState, config: Config, totals: UpdateMetrics) -> None:
    """Clip the gradient and step; a loss or gradient that is not finite is skipped and counted."""
    loss = totals.sum_over_ranks()
    norm = clip_gradients(state.policy, config.max_grad_norm)
    is_finite = math.isfinite(loss) and math.isfinite(norm)
    if is_finite:
        state.optimizer.step()
        state.optimizer_steps += 1
    state.optimizer.zero_grad(set_to_none=True)  # 4 bytes a parameter that the next rollout can use
    state.skipped_in_a_row = 0 if is_finite else state.skipped_in_a_row + 1
    totals.count_step(loss, norm, is_finite)
    if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise RuntimeError(
            f"{MAX_SKIPPED_IN_A_ROW} optimizer steps in a row had a loss ({loss}) or gradient norm ({norm}) not finite. "
            "Look at `entropy`, `kl` and `sampling/*` in metrics.jsonl before this step; a smaller --lr, a larger --beta or "
            "--max-grad-norm 1.0 are the usual remedies. The weights are those of the last good step"
        )


def show_progress(bar: tqdm, metrics: dict[str, float]) -> None:
    plain = metrics.get("pasr/plain_accuracy", math.nan)
    bar.set_postfix_str(
        f"reward {metrics['reward']:.2f}, acc {metrics['pasr/refined_accuracy']:.2f} (plain {plain:.2f}), "
        f"refining {metrics['pasr/refine_frac']:.0%}, {metrics['perf/rollout_tokens_per_s']:.0f} tok/s"
    )


def keep(session: Session, done: int, metrics: dict[str, float], stopped_by: str | None) -> None:
    """Save a checkpoint and write the report, where they are due."""
    config = session.config
    is_best = session.best.update(done, metrics)
    is_due = config.save_every > 0 and done % config.save_every == 0
    if is_due or is_best or stopped_by or done == config.steps:
        session.save(done)
    if is_main() and (is_due or stopped_by or session.is_evaluated(done)):
        write_report([session.run.path])


@contextmanager
def stop_without_judge(session: Session, step: int) -> Iterator[None]:
    """Save and leave when the judge stays away: nothing is trained on the scores that happened to arrive."""
    try:
        yield
    except (JudgeUnavailable, JudgeRefusedError) as error:
        session.save(step)
        by_signal = isinstance(error, StoppedWhileWaiting)
        why = f"stopped by {error} after step {step}" if by_signal else f"stopped after step {step}: {error}"
        print(f"\n{why}; {session.how_to_go_on()}")
        raise SystemExit(0 if by_signal else 1) from error


def run_demo(session: Session) -> dict | None:
    """Train on the embedded task, evaluate before and after, and say what changed. None if stopped by a signal."""
    before = session.evaluate_task(0)
    print(f"before RL: {demo.one_line(before.metrics)}")
    for problem in demo.warm_start_problems(before.metrics):
        print(wrapped(f"warning: the warm-started model is not ready for RL: {problem}"))
    if not train(session):
        return None
    after = session.evaluate_task(session.config.steps)
    print(f"\n{demo.result_table(before.metrics, after.metrics)}\n\n{demo.example_answers(before, after)}\n")
    for problem in demo.end_problems(before.metrics, after.metrics):
        print(wrapped(f"warning: {problem}"))
    return {"before": before.metrics, "after": after.metrics}


def run_real(session: Session) -> dict | None:
    """Train on the user's questions, evaluated before, after and in between if so told. None if stopped by a signal."""
    run, best = session.run, session.best
    if session.evaluation is not None and session.first_step == 0 and not run.read_metrics():
        before = session.evaluate(0)
        best.update(0, before)
        run.log(0, {"num_tokens": 0} | before)
    if not train(session):
        return None
    if best.step == 0:
        print(wrapped(f"no step was better than the initial model by {best.metric}: there is no checkpoint of the best"))
    chosen = {"best": {"metric": best.metric, "step": best.step, "value": best.value}} if best.metric else {}
    return {"last": run.read_metrics()[-1]} | chosen


def run_training(config: Config, begin: tuple[float, float]) -> int:
    """Set a run up, train, and sum it up; `begin` is when the process began, in wall and CPU seconds."""
    with one_line_errors():
        session = open_session(config)
    if session is None:
        print(f"{config.runs_dir}/{config.run} is finished; nothing to do")
        return 0
    with closing(session.run) as run, closing(session.rollout.scores.scorer):
        run.start_wandb(config)
        print(f"run folder: {run.path}")
        print("a GRPO loss near 0 is expected: the advantages of a group add up to 0. Watch the reward")
        result = run_demo(session) if config.model is None else run_real(session)
        if result is not None:
            times = {"wall_s": time.perf_counter() - begin[0], "cpu_s": time.process_time() - begin[1]}
            run.finish({"steps": config.steps} | {name: round(value, 1) for name, value in times.items()} | result)
            if is_main() and (report := write_report([run.path])):
                print(f"report: {report}")
            talk = f"talk to the model: python evaluate.py --model {run.path}"
            talk = talk if config.keep else "with --keep 0 no model was saved"
            print(f"finished in {times['wall_s']:.0f} s; {talk}")
    return 0


def main(argv: list[str] | None = None) -> int:
    begin = (time.perf_counter(), time.process_time())
    with silence_other_ranks(), one_line_errors():
        config = parse_config(argv)
        if config.plan:
            print(plan_text(config))
            return 0
        pick_device(config.device)  # a GPU that is not there is a mistake to be told in one line
    with process_group(config.device):
        return run_training(config, begin)


if __name__ == "__main__":
    try:
        leave(main())
    except KeyboardInterrupt:  # while training it would have been a stop signal
        print_once("interrupted outside of training; --resume auto goes on from the newest checkpoint, if there is one")
        leave(130)
