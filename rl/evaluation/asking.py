"""Single questions to a model, from the command line or a prompt."""

import sys
from dataclasses import dataclass

from data.prompts import PromptRenderer, check_vocabulary, load_prompts, load_tokenizer, stop_ids
from rewards.format import format_reward
from rl.distributed import pick_device
from rl.evaluation.methods import LoadedModel
from rl.records import Completion, Request
from rl.run.checkpoint import model_folder
from rl.weights.policy import load_frozen

COLOUR, PLAIN = "\033[1;33m", "\033[0m"


def load_for_asking(path: str, *, prompts: str | None, device: str, plain_thinking: bool = True) -> LoadedModel:
    """Load a run folder (its newest checkpoint), a checkpoint folder, or a hub id.

    Raises:
        ValueError: something the user has to change.
    """
    folder = model_folder(path)
    tokenizer = load_tokenizer(folder)
    renderer = PromptRenderer(tokenizer, load_prompts(prompts, folder), plain_thinking=plain_thinking)
    stops = list(stop_ids(folder, tokenizer))
    model = load_frozen(folder, pick_device(device))
    check_vocabulary(tokenizer, model.config.vocab_size)
    return LoadedModel(folder, tokenizer, renderer, stops, model, model.config.max_position_embeddings)


@dataclass(frozen=True)
class Asker:
    """One loaded model that answers questions with either prompt.

    Attributes:
        max_new_tokens: longest answer; shorter where the model's context ends.
        temperature: 0 is greedy.
    """

    loaded: LoadedModel
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def answer(self, question: str, mode: str) -> Completion:
        """Return the answer to a question with one of the prompts.

        Raises:
            ValueError: the model cannot read the question.
        """
        ids, context = self.loaded.renderer.ids(question, mode), self.loaded.context
        if len(ids) >= context:
            raise ValueError(f"the question takes {len(ids):,} tokens, this model reads at most {context:,}: shorten it")
        room, key = min(self.max_new_tokens, context - len(ids)), (self.seed, "ask", question, mode)
        return self.loaded.sampler(max_slots=1).generate([Request(ids, 1, room, self.temperature, key, self.top_p)])[0][0]

    def show(self, question: str) -> None:
        """Print the refined and the plain answer, with refinements coloured on a terminal."""
        for mode in ("refine", "plain"):
            completion = self.answer(question, mode)
            text = self.loaded.renderer.decode(completion.text_ids)
            notes = [f"{len(completion.ids)} tokens"]
            notes += ["cut off at --max-new-tokens"] if completion.finish_reason == "length" else []
            notes += ["not well formed"] if mode == "refine" and format_reward(text) < 0 else []
            if sys.stdout.isatty():
                text = text.replace("<refine>", f"{COLOUR}<refine>").replace("</refine>", f"</refine>{PLAIN}") + PLAIN
            print(f"{mode + ' prompt':15s}{text}   ({', '.join(notes)})")


def read_questions(asker: Asker) -> None:
    """Answer the questions that are typed, until an empty line."""
    print("a question, or an empty line to leave")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        try:
            asker.show(question)
        except ValueError as error:  # this question cannot be read; the next one may be fine
            print(f"error: {error}")
