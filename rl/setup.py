"""Everything a run needs before its first step, checked in the order in which mistakes are cheapest."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from data.division import load_split
from data.evol_instruct import prepare
from data.examples import Example, ExampleStream, load_examples
from data.prompts import PromptRenderer, load_prompts, load_tokenizer, stop_ids
from model import Transformer, load_model
from model.checkpoint import fingerprint, resolve_checkpoint, stored_dtype
from rewards.judge import Judgement, Scorer
from rl.baselines import BaselineCache
from rl.best import BestStep
from rl.checkpoint import complete_checkpoints, load_checkpoint, set_aside_later
from rl.config import Config
from rl.demo import warm_started_model
from rl.disk import check_disk
from rl.distributed import pick_device, refuse_many_processes
from rl.judges import judge_identity, make_scorer
from rl.resume import find_checkpoint
from rl.rollout import Rollout
from rl.run_folder import RunFolder
from rl.sampler import Sampler
from rl.training_evaluation import TrainingEvaluation
from rl.update import Updater
from rl.weight_sync import make_sampler_model


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a mistake of the user into one line and exit code 2. Wrapped around set-up only: the loop keeps its tracebacks."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(_fail(str(error))) from error


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", flush=True)
    return 2


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
    policy: Transformer
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
    refuse_many_processes()
    config, checkpoint = find_checkpoint(config)
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
    device = pick_device(config.device)
    source = resolve_checkpoint(config.model, config.revision) if config.model else warm_started_model(config)
    tokenizer = load_tokenizer(source)
    prompts = load_prompts(config.prompts, source)
    renderer = PromptRenderer(tokenizer, prompts, plain_thinking=config.plain_thinking == "on")
    evaluation = TrainingEvaluation(config, renderer) if config.eval_benchmarks else None
    examples = evaluation.hold_out(examples) if evaluation else examples
    examples = drop_long_prompts(examples, renderer, config.max_prompt_tokens)
    stops = stop_ids(source, tokenizer)

    reference = _load(source, device, trainable=False) if config.needs_reference else None
    scorer = make_scorer(config, prompts, tokenizer, reference, lambda folder: _load(folder, device, trainable=False))
    described = describe_prompts(examples[0], renderer, stops, scorer)
    print(described)
    policy = _load(source, device, trainable=True)
    check_vocabulary(tokenizer, policy)
    existing = len(complete_checkpoints(run.path))
    parameters, export_bytes = sum(p.numel() for p in policy.parameters()), stored_dtype(source).itemsize
    print(check_disk(run.path, parameters, export_bytes, keep=config.keep + bool(config.keep_best), existing=existing))
    policy.activation_checkpointing = config.activation_checkpointing
    updater = Updater(policy, reference if config.beta > 0 else None, config)
    first_step = load_checkpoint(checkpoint, updater) if checkpoint else 0
    run.cut_back(first_step if checkpoint else -1)
    set_aside_later(run.path, first_step)
    if config.resume != "never":
        print(f"going on after step {first_step}" + (f", from {checkpoint}" if checkpoint else ": no checkpoint yet"))

    rollout = _make_rollout(config, renderer, scorer, policy, reference, list(stops), source)
    rollout.sampler.policy_version = updater.optimizer_steps
    stream = ExampleStream(examples, config.seed)
    best = BestStep(config.keep_best, run.read_metrics())
    run.accept(config)
    (run.path / "prompts.txt").write_text(described + "\n", encoding="utf-8")
    return Session(config, run, source, renderer, stream, policy, updater, rollout, first_step, evaluation, best)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slower."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _load(source: Path, device: torch.device, *, trainable: bool) -> Transformer:
    """Float32 masters for training; a frozen model is stored in the dtype it computes in."""
    compute = compute_dtype(device)
    model = load_model(source, dtype=torch.float32 if trainable else compute, device=device)
    model.compute_dtype = compute
    return model.requires_grad_(trainable)


def check_vocabulary(tokenizer, model: Transformer) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for. The reverse is usual: embeddings are padded.

    Raises:
        ValueError: some ids have no row.
    """
    rows = model.config.vocab_size
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model's embedding only {rows} rows: another model's?")


def _make_rollout(
    config: Config,
    renderer: PromptRenderer,
    scorer: Scorer,
    policy: Transformer,
    reference: Transformer | None,
    stops: list[int],
    source: Path,
) -> Rollout:
    limits = dict(stop_ids=stops, max_slots=config.max_slots, max_len=config.max_prompt_tokens + config.max_new_tokens)
    sampler = Sampler(make_sampler_model(policy), **limits)
    rollout = Rollout(config, renderer, sampler, scorer)
    if config.uses_plain and config.plain_policy == "reference":
        rollout.reference_sampler = Sampler(reference, **limits)
        setting = {
            "model": fingerprint(source),
            "prompt": renderer.text("", "plain"),
            "judge": judge_identity(config, renderer.prompts, source),
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
        return load_examples(prepare(None, Path(config.runs_dir) / "data"))
    return load_examples(config.data)


def drop_long_prompts(examples: list[Example], renderer: PromptRenderer, limit: int) -> list[Example]:
    """The examples whose longer rendered prompt fits, with a line saying how many do not.

    Raises:
        ValueError: none fits.
    """
    kept = [e for e in examples if max(len(renderer.ids(e.question, mode)) for mode in ("refine", "plain")) <= limit]
    if len(kept) < len(examples):
        print(f"dropped {len(examples) - len(kept)} of {len(examples)} questions: prompt over --max-prompt-tokens {limit}")
    if not kept:
        raise ValueError(f"no prompt fits into --max-prompt-tokens {limit}; raise it")
    return kept


def describe_prompts(example: Example, renderer: PromptRenderer, stops: dict[int, list[str]], scorer: Scorer) -> str:
    """What policy and judge are given and what ends an answer, to be read once at the start of a run."""
    texts = {f"first {mode} prompt": renderer.text(example.question, mode) for mode in ("refine", "plain")}
    texts["first judge prompt"] = scorer.render(Judgement(example.question, example.reference, "(the answer)"))
    names = [f"{id} {renderer.decode([id])!r} ({', '.join(origins)})" for id, origins in stops.items()]
    shown = [f"{title}, as rendered:\n{text}\n" for title, text in texts.items() if text]
    return "".join(shown) + f"completions end with: {'; '.join(names)}"
