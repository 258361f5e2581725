"""Find the checkpoint that a run continues from, and refuse flags that would make another run of it."""

from dataclasses import asdict, replace
from pathlib import Path

from model.checkpoint import read_json
from rl.config import FREE_ON_RESUME, Config, preset_values, to_flag
from rl.judging.judge import decisive
from rl.run.checkpoint import complete_checkpoints, damage, damaged_checkpoints


def find_checkpoint(config: Config) -> tuple[Config, Path | None]:
    """Return the configuration with its run name filled in, and the checkpoint to continue, if there is one.

    Raises:
        ValueError: no such checkpoint, or the run was started with other flags.
    """
    if config.resume == "never":
        return config, None
    if config.resume == "auto":
        if config.run is None:
            raise ValueError("--resume auto needs --run NAME: name the run to continue")
        run = Path(config.runs_dir) / config.run
        for line in damaged_checkpoints(run):
            print(line)
        checkpoint = next(reversed(complete_checkpoints(run)), None)
    else:
        checkpoint = Path(config.resume)
        if checkpoint.parent.name != "checkpoints" or (problem := damage(checkpoint)):
            reason = problem if checkpoint.parent.name == "checkpoints" else "expected runs/NAME/checkpoints/step_NNNNNN"
            raise ValueError(f"--resume {config.resume} is no complete checkpoint: {reason}")
        run = checkpoint.parent.parent
        config = replace(config, run=run.name, runs_dir=str(run.parent))
    if checkpoint is not None and (checkpoint / "state" / ".metadata").exists():  # a pickle, which is not opened
        problem = f"{checkpoint} was written by an earlier version and cannot be resumed"
        raise ValueError(f"{problem}; its weights load as a model (--model {checkpoint})")
    if checkpoint is not None and not config.resume_with_changes:
        config = _with_its_batch(config, checkpoint.parent.parent / "config.json")
        _refuse_changes(config, checkpoint.parent.parent / "config.json")
    return config, checkpoint


def _with_its_batch(config: Config, saved_file: Path) -> Config:
    """Keep the batch of a run of the paper's preset, whose batch depends on the number of GPUs, on another number."""
    saved = read_json(saved_file).get("config")
    if config.preset != "paper" or config.questions_per_step != preset_values("paper")["questions_per_step"]:
        return config
    return replace(config, questions_per_step=saved["questions_per_step"]) if isinstance(saved, dict) else config


def _refuse_changes(config: Config, saved_file: Path) -> None:
    saved, now = read_json(saved_file).get("config"), asdict(config)
    if not isinstance(saved, dict):
        raise ValueError(f"{saved_file} does not hold the flags of a run. To go on all the same: --resume-with-changes")
    changed = [name for name in now if name not in FREE_ON_RESUME and decisive(name, now) != decisive(name, saved)]
    if changed:
        differences = "; ".join(f"{to_flag(name)} was {saved.get(name)}, is {now[name]}" for name in changed)
        raise ValueError(f"the run was started with other flags: {differences}. To go on all the same: --resume-with-changes")
