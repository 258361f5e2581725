"""Ask a model, with the refine prompt and with the plain one.

python evaluate.py --model runs/NAME --ask "274/39"     one question, to a run's newest checkpoint
python evaluate.py --model runs/NAME                    questions at a prompt, until an empty line
python evaluate.py --model Qwen/Qwen2.5-7B --ask "..."  any folder or hub id
"""

import argparse
import sys
from pathlib import Path

from data.prompts import PromptRenderer, load_prompts, load_tokenizer, stop_ids
from model import load_model
from model.checkpoint import resolve_checkpoint
from rewards.format import format_reward
from rl.checkpoint import newest_model
from rl.distributed import pick_device
from rl.memory import compute_dtype
from rl.records import Completion, Request
from rl.sampler import Sampler
from rl.setup import check_vocabulary, one_line_errors

COLOUR, PLAIN = "\033[1;33m", "\033[0m"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Ask a model with both prompts.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="run folder, checkpoint folder or hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--ask", metavar="QUESTION", help="a question; none: read questions from the terminal")
    parser.add_argument("--prompts", help="JSON file that replaces the system prompts; default: those saved with the model")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: off)")
    parser.add_argument("--max-new-tokens", type=int, default=1500, help="longest answer (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling, where the temperature is above 0")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


class Asker:
    """One loaded model that answers questions with either prompt."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        folder = resolve_checkpoint(newest_model(Path(arguments.model)), arguments.revision)
        tokenizer = load_tokenizer(folder)
        self.renderer = PromptRenderer(tokenizer, load_prompts(arguments.prompts, folder))
        self.stop_ids = list(stop_ids(folder, tokenizer))
        device = pick_device(arguments.device)
        self.model = load_model(folder, dtype=compute_dtype(device), device=device)
        check_vocabulary(tokenizer, self.model)

    def answer(self, question: str, mode: str) -> Completion:
        given = self.arguments
        ids = self.renderer.ids(question, mode)
        sampler = Sampler(self.model, stop_ids=self.stop_ids, max_slots=1, max_len=len(ids) + given.max_new_tokens)
        key = (given.seed, "ask", question, mode)
        return sampler.generate([Request(ids, 1, given.max_new_tokens, given.temperature, key, given.top_p)])[0][0]

    def show(self, question: str) -> None:
        """Print the refined and the plain answer."""
        for mode in ("refine", "plain"):
            completion = self.answer(question, mode)
            text = self.renderer.decode(completion.text_ids)
            notes = [f"{len(completion.ids)} tokens"]
            if completion.finish_reason == "length":
                notes.append("cut off at --max-new-tokens")
            if mode == "refine" and format_reward(text) < 0:
                notes.append("not well formed")
            print(f"{mode + ' prompt':15s}{mark_refinements(text, sys.stdout.isatty())}   ({', '.join(notes)})")


def mark_refinements(text: str, colours: bool) -> str:
    """The text with its refinements coloured, on a terminal."""
    if not colours:
        return text
    return text.replace("<refine>", f"{COLOUR}<refine>").replace("</refine>", f"</refine>{PLAIN}") + PLAIN


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with one_line_errors():
        asker = Asker(arguments)
        if arguments.ask is not None:
            asker.show(arguments.ask)
            return 0
    print("a question, or an empty line to leave")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return 0
        if not question:
            return 0
        try:
            asker.show(question)
        except ValueError as error:  # a question this model cannot read; the next one may be fine
            print(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
