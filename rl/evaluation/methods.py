"""The methods that the paper compares: one turn or two, with the plain or the refine prompt.

All questions of a turn go through one call of the sampler. A second turn is the dialogue of the first one with a request to
review it. Earlier native thinking is left out of it, as Qwen3's chat template does by itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict

from data.benchmarks import BenchmarkItem
from data.prompts import PromptRenderer
from rewards.format import answer_body, plain_answer
from rl.config import option
from rl.records import Completion, Request
from rl.sampler import Sampler

HOLDS = "The solution is right."
REVIEW = (
    "Go through your solution step by step and check each step. If you find a mistake, correct it and write the whole solution "
    f"anew, with the answer in the form that was asked for. If every step holds, reply '{HOLDS}' and nothing else."
)
REVIEW_WRONG = (
    "There is an error in your solution. Go through it step by step, find the error, correct it, and write the whole solution "
    "anew, with the answer in the form that was asked for."
)


@dataclass(frozen=True)
class Method:
    """A way of answering a question.

    Attributes:
        name: its name on the command line and in file names.
        title: its row in tables, as the paper calls it.
        mode: the system prompt, "plain" or "refine".
        review: the user's message after the first response; None: there is no second turn.
        only_wrong: only responses that are scored as wrong get a second turn.
        paper_temperature: temperature of the second turn under --paper-decoding.
    """

    name: str
    title: str
    mode: str
    review: str | None = None
    only_wrong: bool = False
    paper_temperature: float = 0.0


METHODS = {
    method.name: method
    for method in (
        Method("vanilla", "vanilla", "plain"),
        Method("self-refine", "Self-Refine", "plain", REVIEW, paper_temperature=0.9),
        Method("self-refine-oracle", "Self-Refine+", "plain", REVIEW_WRONG, only_wrong=True, paper_temperature=0.6),
        Method("pasr-prompt", "PASR(+prompt)", "refine"),
        Method("pasr-ift", "PASR(+IFT)", "refine"),
        Method("pasr", "PASR", "refine"),
    )
}


def parse_methods(text: str) -> list[Method]:
    """Return methods by name, with commas between them; in the order of `METHODS`, so that first turns can be shared.

    Raises:
        ValueError: an unknown name, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"no method is called {unknown[0]!r}; there are {', '.join(METHODS)}")
    if not names:
        raise ValueError(f"no method is named; choose from {', '.join(METHODS)}")
    return [method for name, method in METHODS.items() if name in names]


class Turn(TypedDict):
    """One prompt and the response to it, as it stands in an answer's record."""

    prompt: str
    response: str
    tokens: int
    finish_reason: str


def make_turn(renderer: PromptRenderer, prompt: str, completion: Completion) -> Turn:
    """Return what was sampled after a prompt, as text."""
    text = renderer.decode(completion.text_ids)
    return Turn(prompt=prompt, response=text, tokens=len(completion.ids), finish_reason=completion.finish_reason)


@dataclass(frozen=True)
class Decoding:
    """The way responses are drawn: the first flags of evaluate.py."""

    temperature: float = option(0.0, "sampling temperature; 0 is greedy")
    top_p: float = option(1.0, "nucleus sampling; 1: off")
    samples: int = option(1, "answers to each question: mean@k, pass@k, maj@k")
    max_new_tokens: int = option(1500, "longest answer (paper: 1,500)")
    seed: int = option(0, "seed of sampling, and of the choice of questions by --limit")
    paper_decoding: bool = option(
        False, "as in the paper: second turns of self-refine at T = 0.9, of self-refine-oracle at 0.6"
    )


Deliver = Callable[[BenchmarkItem, int, list[Turn]], None]  # question, number of the answer, its turns


@dataclass
class Answerer:
    """One model that answers questions by any method.

    Attributes:
        shortened: responses that had less than max_new_tokens of room, since the last time this was set to 0.
    """

    renderer: PromptRenderer
    sampler: Sampler
    decoding: Decoding
    shortened: int = 0

    def unreadable(self, item: BenchmarkItem, prompt: str) -> str:
        """Return why the model cannot be given a prompt (no token for a character, or too long), or ""."""
        try:
            length = len(self.renderer.encode(prompt, item.question))
        except ValueError as error:  # callers count these questions, and tell the reason
            return str(error)
        limit = self.sampler.max_len
        return f"the prompt has {length:,} tokens, this model reads at most {limit:,}: shorten it" if length >= limit else ""

    def ask(self, question: str, mode: str) -> list[Turn]:
        """Return `samples` answers to one question.

        Raises:
            ValueError: the model cannot read it.
        """
        item, answers = BenchmarkItem(question, question, ()), []
        if reason := self.unreadable(item, self.renderer.text(question, mode)):
            raise ValueError(reason)
        self.first_turns([item], mode, lambda _item, _sample, turns: answers.append(turns[0]))
        return answers

    def first_turns(self, items: Iterable[BenchmarkItem], mode: str, deliver: Deliver) -> None:
        """Answer every question `samples` times. Each answer is delivered as soon as it ends."""
        prompts = [(item, 0, [], self.renderer.text(item.question, mode)) for item in items]
        self._draw(prompts, self.decoding.samples, self.decoding.temperature, ("first", mode), deliver)

    def second_turns(self, answers: list[tuple[BenchmarkItem, int, Turn]], method: Method, deliver: Deliver) -> None:
        """Let responses be reviewed, and deliver both turns. A response that leaves no room for a review stands alone."""
        prompts = []
        for item, sample, turn in answers:
            prompt = self.renderer.text(item.question, method.mode, [(without_thinking(turn), method.review)])
            if self.unreadable(item, prompt):
                deliver(item, sample, [turn])
            else:
                prompts.append((item, sample, [turn], prompt))
        temperature = method.paper_temperature if self.decoding.paper_decoding else self.decoding.temperature
        self._draw(prompts, 1, temperature, ("second", method.name), deliver)

    def _draw(
        self,
        prompts: list[tuple[BenchmarkItem, int, list[Turn], str]],
        samples: int,
        temperature: float,
        purpose: tuple[str, str],
        deliver: Deliver,
    ) -> None:
        """Answer all prompts of a turn in one call of the sampler."""
        # a request for each prompt
        requests = []
        for item, sample, _, prompt in prompts:
            ids = self.renderer.encode(prompt, item.question)
            room = min(self.decoding.max_new_tokens, self.sampler.max_len - len(ids))
            self.shortened += samples * (room < self.decoding.max_new_tokens)
            key = (self.decoding.seed, "benchmark", *purpose, item.id, sample)
            requests.append(Request(ids, samples, room, temperature, key, self.decoding.top_p))

        # responses, as they end
        def finish(r: int, i: int, completion: Completion) -> None:
            item, sample, earlier, prompt = prompts[r]
            deliver(item, sample + i, [*earlier, make_turn(self.renderer, prompt, completion)])

        self.sampler.generate(requests, on_finish=finish)


def answer_text(turn: Turn, mode: str) -> str:
    """Return the part of a response that is scored.

    Under the refine prompt it is the body of the answer pair. Under the plain prompt it is what follows native thinking, or the
    answer pair in that, because trained models sometimes write one there, too.
    """
    if mode == "refine":
        return answer_body(turn["response"])
    text = plain_answer(_with_opening(turn))
    return answer_body(text) or text


def without_thinking(turn: Turn) -> str:
    """Return a plain response as the next prompt shows it. Thinking that never ended is shown, as there is nothing else."""
    return plain_answer(_with_opening(turn)) or turn["response"].strip()


def says_it_holds(turn: Turn) -> bool:
    """Return whether a review leaves the solution as it is: then the answer before it stands."""
    text = " ".join(plain_answer(_with_opening(turn)).casefold().split())
    return text.strip(" .!'\"*") == HOLDS.casefold().strip(".")


def _with_opening(turn: Turn) -> str:
    """Return the response with the <think> tag that some templates put into the prompt.

    Without the tag, thinking that never ends would pass for an answer.
    """
    is_opened = turn["prompt"].rstrip().endswith("<think>")
    return "<think>" + turn["response"] if is_opened else turn["response"]
