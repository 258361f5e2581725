"""Everything a run needs before its first step, checked in the order in which mistakes are cheapest."""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from data.division import load_split
from data.evol_instruct import prepare
from data.examples import Example, ExampleStream, load_examples
from data.prompts import PromptRenderer, check_vocabulary, load_prompts, load_tokenizer, stop_ids
from model import Transformer
from model.checkpoint import fingerprint, stored_dtype
from rewards.judge import Judgement, Scorer
from rl.baselines import BaselineCache
from rl.checkpoint import complete_checkpoints, load_checkpoint, model_folder, set_aside_later
from rl.config import Config
from rl.demo import warm_started_model
from rl.disk import check_disk
from rl.distributed import from_main, pick_device
from rl.evaluation.best import BestStep
from rl.evaluation.while_training import TrainingEvaluation
from rl.judges import judge_identity, make_scorer, training_prompt
from rl.memory.build import Policy, build_policy, build_reference
from rl.memory.table import plan_run, read_model_config
from rl.resume import find_checkpoint
from rl.rollout import Rollout
from rl.run_folder import RunFolder
from rl.sampler import Sampler
from rl.update import Updater
from rl.weight_sync import WholeWeights


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
    updater: Updater
    rollout: Rollout
    first_step: int
    evaluation: TrainingEvaluation | None
    best: BestStep


def open_session(config: Config) -> Session | None:
    """Build everything, and continue from a checkpoint if told to.

    Returns:
        None if the run is finished already.

    Raises:
        ValueError, OSError: something the user has to change; nothing of an earlier run has been touched.
    """
    config, checkpoint = from_main(lambda: find_checkpoint(config))
    examples = load_questions(config)
    run = RunFolder(config, resuming=config.resume != "never")
    if run.is_finished(config.steps):
        run.close()
        return None
    with ExitStack() as on_failure:
        on_failure.callback(run.abandon)
        session = _assemble(config, run, examples, checkpoint)
        on_failure.pop_all()
    return session


def _assemble(config: Config, run: RunFolder, examples: list[Example], checkpoint: Path | None) -> Session:
    """Load everything, then take the run folder over: whatever may fail comes before the first change to it."""
    device, source = pick_device(config.device), find_source(config)
    tokenizer, prompts = load_tokenizer(source), load_prompts(config.prompts, source)
    renderer = PromptRenderer(tokenizer, prompts, plain_thinking=config.plain_thinking == "on")
    longest = longest_prompt(config, source)
    evaluation = TrainingEvaluation(config, renderer, longest) if config.eval_benchmarks else None
    examples = evaluation.hold_out(examples) if evaluation else examples
    examples = drop_long_prompts(examples, renderer, longest)
    stops = stop_ids(source, tokenizer)

    plan = plan_run(config, source, device)
    # slots that were left to auto are measured when there is something to sample
    decided = replace(plan.config, max_slots="auto") if config.max_slots == "auto" else plan.config
    reference = build_reference(decided, source, device) if config.needs_reference else None
    reference_weights = WholeWeights(reference, keep=False) if reference is not None else nullcontext()
    with reference_weights if config.judge_kind == "self" else nullcontext() as whole_reference:
        scorer = make_scorer(config, prompts, (whole_reference, tokenizer), device)
    described = describe_prompts(examples[0], renderer, stops, scorer)
    print(described)
    policy = build_policy(decided, source, device, keep_copy=plan.keep_copy)
    check_vocabulary(tokenizer, policy.model.config.vocab_size)
    print(_check_disk(config, run, policy.model, source))
    updater = Updater(policy.model, reference if config.beta > 0 else None, decided, policy.optimizer)
    rollout = _make_rollout(decided, renderer, scorer, policy, reference_weights, list(stops), source)
    first_step = load_checkpoint(checkpoint, updater) if checkpoint else 0
    rollout.take_weights(version=updater.optimizer_steps)

    from_main(lambda: run.cut_back(first_step if checkpoint else -1))
    from_main(lambda: set_aside_later(run.path, first_step))
    from_main(lambda: run.accept(config, None if rollout.baselines is None else rollout.baselines.path.name))
    run.keep_prompts(described)
    if config.resume != "never":
        whence = f", from {checkpoint}" if checkpoint else f": no checkpoint yet in {run.path}"
        print(f"going on after step {first_step}{whence}")
    stream, best = ExampleStream(examples, config.seed), BestStep(config.keep_best, run.read_metrics())
    return Session(config, run, source, renderer, stream, updater, rollout, first_step, evaluation, best)


def longest_prompt(config: Config, source: Path) -> int:
    """Tokens that a prompt may have: --max-prompt-tokens, or what the longest answer leaves of the model's context.

    Raises:
        ValueError: it leaves nothing.
    """
    context = read_model_config(str(source)).max_position_embeddings
    if config.max_new_tokens >= context:
        raise ValueError(f"--max-new-tokens {config.max_new_tokens} fills the model's context of {context} tokens: lower it")
    return min(config.max_prompt_tokens, context - config.max_new_tokens)


def _check_disk(config: Config, run: RunFolder, model: Transformer, source: Path) -> str:
    parameters, export_bytes = sum(p.numel() for p in model.parameters()), stored_dtype(source).itemsize
    keep, existing = config.keep + bool(config.keep_best), len(complete_checkpoints(run.path))
    return check_disk(run.path, parameters, export_bytes, keep=keep, existing=existing)


def find_source(config: Config) -> Path:
    """The folder of the initial policy. Every machine fetches its own copy of a hub id; a warm start is made once."""
    if config.model is None:
        return from_main(lambda: warm_started_model(config))
    return model_folder(config.model, config.revision)


def _make_rollout(
    config: Config,
    renderer: PromptRenderer,
    scorer: Scorer,
    policy: Policy,
    reference_weights: WholeWeights | nullcontext,
    stops: list[int],
    source: Path,
) -> Rollout:
    limits = dict(stop_ids=stops, max_slots=config.max_slots, max_len=config.max_prompt_tokens + config.max_new_tokens)
    sampler = Sampler(policy.weights.model, **limits)
    rollout = Rollout(config, renderer, sampler, scorer, weights=policy.weights)
    if config.judge_kind == "self":
        rollout.judge_weights = reference_weights
    if config.reference_writes_plain:
        rollout.reference_weights = reference_weights
        rollout.reference_sampler = Sampler(reference_weights.model, **limits)
        setting = {
            "model": fingerprint(source),
            "prompt": renderer.text("", "plain"),
            "judge": judge_identity(config, source, [training_prompt(renderer.prompts)]),
            "samples": config.plain_samples,
            "temperature": config.temperature,
            "max_new_tokens": config.max_new_tokens,
        }
        rollout.baselines = BaselineCache(Path(config.runs_dir) / "baselines", setting)
    return rollout


def load_questions(config: Config) -> list[Example]:
    """The training questions of --data."""
    if config.model is None:
        return load_split(held_out=False)
    if config.data == "evol-instruct":
        return load_examples(from_main(lambda: prepare(None, Path(config.runs_dir) / "data")))
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
    """What policy and judge are given and what ends an answer, to be read once at the start of a run."""
    texts = {f"first {mode} prompt": renderer.text(example.question, mode) for mode in ("refine", "plain")}
    texts["first judge prompt"] = scorer.render(Judgement(example.question, example.reference, "(the answer)"))
    names = [f"{id} {renderer.decode([id])!r} ({', '.join(origins)})" for id, origins in stops.items()]
    shown = [f"{title}, as rendered:\n{text}\n\n" for title, text in texts.items() if text]
    return "".join(shown) + f"completions end with: {'; '.join(names)}"
