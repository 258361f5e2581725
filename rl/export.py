"""Write the model of a run for other programs: transformers, vLLM, peft.

python -m rl.export runs/NAME OUT            the newest checkpoint, without what only training needs
python -m rl.export runs/NAME OUT --merge    with the adapters of --lora-rank added to the base's weights: a whole model
"""

import shutil
import sys
from pathlib import Path

from data.prompts import load_prompts
from model import load_model, save_model
from model.folder import base_folder
from rl.config import Parser
from rl.run.checkpoint import MARKER, model_folder
from rl.run.console import one_line_errors


def export(model: str, out: Path, *, merge: bool) -> None:
    """Write the model of a run or folder to a new folder, in the dtype of its base.

    Raises:
        ValueError: there is no such model, or `out` exists.
    """
    folder = model_folder(model)
    base_folder(folder)  # an adapter without its base is no use to anybody
    if out.exists():
        raise ValueError(f"{out} exists; choose another folder")
    if merge:
        save_model(load_model(folder), None, out, source=folder)  # merged in float32, and rounded once
        load_prompts(None, folder).save(out)
    else:
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns("state", MARKER))


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m rl.export", "Write the newest model of a run for transformers, vLLM or peft.")
    parser.add_argument("model", help="run folder (its newest checkpoint), checkpoint folder or hub id")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--merge", action="store_true", help="add the adapters to the weights of the base")
    flags = {"merge": False} | vars(parser.parse_args(argv))
    with one_line_errors():
        export(**flags)
    print(f"{flags['out']} holds the model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
