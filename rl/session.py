"""Everything a run needs before its first step, checked in the order in which mistakes are cheapest."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from data.division import load_split
from data.evol_instruct import prepare
from data.examples import Example, ExampleStream, load_examples, shuffled
from data.prompts import PromptRenderer, check_vocabulary, load_prompts, load_tokenizer, stop_ids
from model.folder import base_folder, fingerprint, is_adapter, stored_dtype, text_folder
from rewards.judge import Judgement, Scorer
from rl import demo
from rl.config import Config
from rl.distributed import broadcast_from_main
from rl.evaluation.training import BestStep, TrainingEvaluation
from rl.judging.cache import BaselineCache, ReferenceBaselines
from rl.judging.judge import JudgeSpec, judge_identity, make_scorers, training_prompt
from rl.judging.waiting import PendingScores
from rl.rollout import Rollout
from rl.run.checkpoint import check_disk, load_checkpoint, model_folder, save_checkpoint
from rl.run.console import wrapped
from rl.run.folder import RunFolder, find_checkpoint
from rl.sampler import Sampler
from rl.weights.memory import plan_run, read_model_config
from rl.weights.policy import TrainState, WholeWeights, load_policy, load_reference, make_optimizer


@dataclass
class Session:
    """The pieces of a run.

    Attributes:
        source: folder the policy was loaded from.
        first_step: steps already done, by the checkpoint that is continued.
        evaluation: of --eval-benchmarks; None without.
        best: by --keep-best.
    """

    config: Config
    run: RunFolder
    source: Path
    renderer: PromptRenderer
    stream: ExampleStream
    state: TrainState
    rollout: Rollout
    first_step: int
    evaluation: TrainingEvaluation | None
    best: BestStep

    def is_evaluated(self, done: int) -> bool:
        """Return whether step `done` ends with an evaluation. The last step of a demo is evaluated when training is over."""
        if done == self.config.steps:
            return self.evaluation is not None
        return self.config.eval_every > 0 and done % self.config.eval_every == 0

    def evaluate(self, step: int, tell: Callable[[str], None] = print) -> dict[str, float]:
        """Evaluate after `step` steps, tell how it went, and return what is to be logged with the step."""
        if self.evaluation is None:
            tell(f"step {step}: {demo.one_line(self.evaluate_task(step).metrics)}")
            return {}
        with self.rollout.weights:
            metrics = self.evaluation.run(self.rollout.sampler, self.run.path / "eval" / f"step_{step:06d}.jsonl")
        tell(f"step {step}: {self.evaluation.one_line(metrics)}")
        return metrics

    def save(self, step: int) -> None:
        """Save a checkpoint after `step` steps, and say which one is the best so far. With --keep 0 nothing is saved."""
        if self.config.keep == 0:
            return
        save_checkpoint(self.run.path, step, self.state, self.renderer, self.source, self.config.keep, self.best.step)
        self.best.save(self.run.path)

    def how_to_go_on(self) -> str:
        """Return what a user does with a run that was stopped."""
        if self.config.keep == 0:
            return "with --keep 0 nothing was saved, so it cannot be continued"
        return f"go on with the same flags and --runs-dir {self.run.path.parent} --run {self.run.path.name} --resume auto"

    def evaluate_task(self, step: int) -> demo.Evaluation:
        """Ask held-out questions of the embedded task; the answers are kept in eval/, so that a resumed run finds them."""
        config, file = self.config, self.run.path / "eval" / f"step_{step:06d}.json"
        is_kept = step <= self.first_step
        if found := broadcast_from_main(lambda: demo.Evaluation.load(file) if file.exists() and is_kept else None):
            return found
        questions = shuffled(load_split(held_out=True), seed=0, epoch=0)[: config.eval_limit]
        with self.rollout.weights:
            result = demo.evaluate_division(self.rollout.sampler, self.renderer, questions, config.max_new_tokens)
        broadcast_from_main(lambda: result.save(file))
        return result


def open_session(config: Config) -> Session | None:
    """Build everything, and continue from a checkpoint if told to.

    Returns:
        None if the run is finished already.

    Raises:
        ValueError, OSError: something the user has to change; nothing of an earlier run has been touched.
    """
    if config.wandb != "off" and find_spec("wandb") is None:
        raise ValueError("wandb is not installed: pip install wandb, or leave it out by --wandb off")
    config, checkpoint = broadcast_from_main(lambda: find_checkpoint(config))
    spec = JudgeSpec.of(config, Path(config.runs_dir))
    examples = load_questions(config)
    run = RunFolder(config, resuming=config.resume != "never")
    if run.is_finished(config.steps):
        run.close()
        return None
    with ExitStack() as on_failure:
        on_failure.callback(run.discard)
        session = _assemble(config, run, examples, checkpoint, spec)
        on_failure.pop_all()
    return session


def _assemble(config: Config, run: RunFolder, examples: list[Example], checkpoint: Path | None, spec: JudgeSpec) -> Session:
    """Load everything, then take the run folder over: whatever may fail comes before the first change to it."""
    # questions, as the model's tokenizer renders them
    source, device = find_source(config), spec.device
    tokenizer, prompts = load_tokenizer(text_folder(source)), load_prompts(config.prompts, source)
    renderer = PromptRenderer(tokenizer, prompts, plain_thinking=config.plain_thinking == "on")
    longest = longest_prompt(config, source)
    evaluation = TrainingEvaluation(config, renderer, longest) if config.eval_benchmarks else None
    examples = evaluation.hold_out(examples) if evaluation else examples
    examples = drop_long_prompts(examples, renderer, longest)
    stops = stop_ids(base_folder(source), tokenizer)

    # where everything will live; slots that were left to auto are measured when there is something to sample
    plan = plan_run(config, source, device)
    decided = replace(plan.config, max_slots="auto") if config.max_slots == "auto" else plan.config

    # the reference and the judge, which is tried out before the policy is loaded
    in_host = plan.reference_memory == "host"
    adapted = load_policy(decided, source, device) if config.lora_rank or is_adapter(source) else None
    reference = load_reference(source, device, offload=in_host, policy=adapted) if config.needs_reference else None
    is_read_whole = spec.kind == "self" or config.reference_writes_plain
    reference_weights = WholeWeights(reference) if is_read_whole else nullcontext()
    judge_weights = reference_weights if spec.kind == "self" else nullcontext()
    with judge_weights as judge_model:
        scorer = make_scorers(spec, {"answer": training_prompt(prompts)}, (judge_model, tokenizer), tried="answer")["answer"]
    described = describe_prompts(examples[0], renderer, stops, scorer)
    print(wrapped(described))  # to the letter they stand in prompts.txt

    # the policy, its optimizer, and what samples from it
    policy = adapted or load_policy(decided, source, device)
    optimizer, weights = make_optimizer(policy, decided), WholeWeights(policy)
    check_vocabulary(tokenizer, policy.config.vocab_size)
    trained, kept = [p for p in policy.parameters() if p.requires_grad], config.keep + bool(config.keep_best)
    dtype = trained[0].dtype if adapted else stored_dtype(source)
    print(broadcast_from_main(lambda: check_disk(run.path, sum(p.numel() for p in trained), dtype.itemsize, kept)))
    state = TrainState(policy, optimizer, reference if config.beta > 0 else None)
    limits = dict(stop_ids=stops, max_slots=decided.max_slots, max_len=config.max_prompt_tokens + config.max_new_tokens)
    scores = PendingScores(scorer, spec.options.max_failures, spec.options.patience)
    rollout = Rollout(decided, renderer, Sampler(weights.model, **limits), scores, weights, judge_weights)
    cache = None
    if config.reference_writes_plain:
        cache = BaselineCache(Path(config.runs_dir) / "baselines", baseline_setting(config, spec, renderer, source))
        rollout.fill_baselines = ReferenceBaselines(cache, Sampler(reference_weights.model, **limits), reference_weights)
    first_step = load_checkpoint(checkpoint, state) if checkpoint else 0
    rollout.sync_weights(version=state.optimizer_steps)

    # from here on the run folder is this run's
    baselines, after = None if cache is None else cache.path.name, first_step if checkpoint else -1
    broadcast_from_main(lambda: run.start(config, after, described, baselines))
    if config.resume != "never":
        origin = f", from {checkpoint}" if checkpoint else f": no checkpoint yet in {run.path}"
        print(f"going on after step {first_step}{origin}")
    stream, best = ExampleStream(examples, config.seed), BestStep(config.keep_best, run.read_metrics())
    return Session(config, run, source, renderer, stream, state, rollout, first_step, evaluation, best)


def baseline_setting(config: Config, spec: JudgeSpec, renderer: PromptRenderer, source: Path) -> dict:
    """Collect everything that r̄ of the reference depends on besides the question."""
    return {
        "model": fingerprint(source),
        "prompt": renderer.text("", "plain"),
        "judge": judge_identity(spec, source, [training_prompt(renderer.prompts)]),
        "samples": config.plain_samples,
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
    }


def longest_prompt(config: Config, source: Path) -> int:
    """Tokens that a prompt may have: --max-prompt-tokens, or what the longest answer leaves of the model's context.

    Raises:
        ValueError: it leaves nothing.
    """
    context = read_model_config(str(source)).max_position_embeddings
    if config.max_new_tokens >= context:
        raise ValueError(f"--max-new-tokens {config.max_new_tokens} fills the model's context of {context} tokens: lower it")
    return min(config.max_prompt_tokens, context - config.max_new_tokens)


def find_source(config: Config) -> Path:
    """The folder of the initial policy. Every machine fetches its own copy of a hub id; a warm start is made once."""
    if config.model is None:
        return broadcast_from_main(lambda: demo.warm_started_model(config))
    return model_folder(config.model)


def load_questions(config: Config) -> list[Example]:
    """The training questions of --data."""
    if config.model is None:
        return load_split(held_out=False)
    if config.data == "evol-instruct":
        return load_examples(broadcast_from_main(lambda: prepare(None, Path(config.runs_dir) / "data")))
    return load_examples(config.data)


def drop_long_prompts(examples: list[Example], renderer: PromptRenderer, limit: int) -> list[Example]:
    """The examples whose longer rendered prompt fits, with a line saying how many do not.

    Raises:
        ValueError: none fits.
    """
    kept = [e for e in examples if max(len(renderer.ids(e.question, mode)) for mode in ("refine", "plain")) <= limit]
    if len(kept) < len(examples):
        print(f"dropped {len(examples) - len(kept)} of {len(examples)} questions: their prompts have over {limit} tokens")
    if not kept:
        raise ValueError(
            f"no prompt fits into {limit} tokens: raise --max-prompt-tokens, or lower --max-new-tokens if the model's context "
            "is what leaves no more"
        )
    return kept


def describe_prompts(example: Example, renderer: PromptRenderer, stops: dict[int, list[str]], scorer: Scorer) -> str:
    """Describe the prompts of policy and judge and what ends an answer, to be read once at the start of a run."""
    texts = {f"first {mode} prompt": renderer.text(example.question, mode) for mode in ("refine", "plain")}
    texts["first judge prompt"] = scorer.render(Judgement(example.question, example.reference, "(the answer)"))
    names = [f"{id} {renderer.decode([id])!r} ({', '.join(origins)})" for id, origins in stops.items()]
    shown = [f"{title}, as rendered:\n{text}\n\n" for title, text in texts.items() if text]
    return "".join(shown) + f"completions end with: {'; '.join(names)}"
