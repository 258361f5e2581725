"""A model that is asked and not trained, with everything it takes to ask it."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data.prompts import PROMPTS_FILE, PromptRenderer, check_vocabulary, load_prompts, load_tokenizer, stop_ids
from model import Transformer
from rl.checkpoint import model_folder
from rl.distributed import pick_device
from rl.memory.build import load_frozen


@dataclass
class LoadedModel:
    """A frozen model.

    Attributes:
        folder: it was loaded from.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    renderer: PromptRenderer
    stop_ids: list[int]
    model: Transformer

    @property
    def is_trained_here(self) -> bool:
        """Whether training wrote this folder: then the prompts are saved with it."""
        return (self.folder / PROMPTS_FILE).is_file()


def load_for_asking(
    path: str, *, revision: str | None, prompts: str | None, device: str, plain_thinking: bool = True
) -> LoadedModel:
    """Load a run folder (its newest checkpoint), a checkpoint folder, or a hub id.

    Raises:
        ValueError: something the user has to change.
    """
    folder = model_folder(path, revision)
    tokenizer = load_tokenizer(folder)
    renderer = PromptRenderer(tokenizer, load_prompts(prompts, folder), plain_thinking=plain_thinking)
    stops = list(stop_ids(folder, tokenizer))
    model = load_frozen(folder, pick_device(device))
    check_vocabulary(tokenizer, model.config.vocab_size)
    return LoadedModel(folder, tokenizer, renderer, stops, model)
