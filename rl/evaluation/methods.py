"""The ways of answering that the paper compares: one turn or two, with the plain or the refine prompt.

All questions of a turn go through one call of the sampler. A second turn is the first one's dialogue with a request to review
it; earlier native thinking is left out of it, as Qwen3's chat template does by itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from data.benchmark_rows import BenchmarkItem
from data.prompts import PromptRenderer
from model import Transformer
from rewards.format import answer_body, plain_answer
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
        name: on the command line and in file names.
        title: its row in tables, as the paper calls it.
        mode: the system prompt, "plain" or "refine".
        review: what the user says after the first response; None: there is no second turn.
        only_wrong: only responses that are scored as wrong are sent back.
        paper_temperature: of the second turn under --paper-decoding (PASR.md section 4).
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
    """Methods by name, with commas between them; in the order of `METHODS`, so that first turns can be shared.

    Raises:
        ValueError: an unknown name, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"no method is called {unknown[0]!r}; there are {', '.join(METHODS)}")
    if not names:
        raise ValueError(f"no method is named; choose from {', '.join(METHODS)}")
    return [method for name, method in METHODS.items() if name in names]


@dataclass(frozen=True)
class Turn:
    """One prompt and the response to it; a part of an answer's record."""

    prompt: str
    response: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn.

    Attributes:
        temperature: 0 is greedy.
        samples: answers to each question.
        seed: of every draw, with the question and what it is drawn for.
        paper: second turns are drawn at the method's own temperature.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    max_new_tokens: int = 1500
    seed: int = 0
    max_slots: int | Literal["auto"] = "auto"
    paper: bool = False


Deliver = Callable[[BenchmarkItem, int, list[Turn]], None]


class UnreadableError(ValueError):
    """A prompt that the model cannot be given; the message says why."""


@dataclass
class Answerer:
    """One model that answers questions by any method.

    Attributes:
        context: the longest prompt and response together that the model takes, in tokens.
        shortened: responses that had less than max_new_tokens of room, since the last time this was set to 0.
    """

    model: Transformer
    renderer: PromptRenderer
    stop_ids: list[int]
    context: int
    decoding: Decoding
    shortened: int = field(default=0, init=False)

    def check(self, item: BenchmarkItem, mode: str) -> None:
        """Whether the first prompt can be given.

        Raises:
            UnreadableError: characters without a token, or longer than the context.
        """
        self._encode(self.renderer.text(item.question, mode), item.question)

    def first_turns(self, items: Iterable[BenchmarkItem], mode: str, deliver: Deliver) -> None:
        """Answer every question `samples` times. Each answer is delivered as soon as it ends."""
        asked = [(item, 0, [], self.renderer.text(item.question, mode), self.decoding.samples) for item in items]
        self._draw(asked, self.decoding.temperature, ("first", mode), deliver)

    def second_turns(self, given: list[tuple[BenchmarkItem, int, Turn]], method: Method, deliver: Deliver) -> None:
        """Let responses be reviewed; both turns are delivered. One that leaves no room for a second turn keeps its first."""
        asked = []
        for item, sample, turn in given:
            dialogue = [(without_thinking(turn), method.review)]
            prompt = self.renderer.text(item.question, method.mode, dialogue)
            try:
                self._encode(prompt, item.question)
            except UnreadableError:
                deliver(item, sample, [turn])
            else:
                asked.append((item, sample, [turn], prompt, 1))
        temperature = method.paper_temperature if self.decoding.paper else self.decoding.temperature
        self._draw(asked, temperature, ("second", method.name), deliver)

    def _draw(self, asked: list[tuple], temperature: float, purpose: tuple, deliver: Deliver) -> None:
        """One call of the sampler for all prompts of a turn."""
        requests = []
        for item, sample, _, prompt, count in asked:
            ids = self._encode(prompt, item.question)
            room = min(self.decoding.max_new_tokens, self.context - len(ids))
            self.shortened += count * (room < self.decoding.max_new_tokens)
            key = (self.decoding.seed, "benchmark", *purpose, item.id, sample)
            requests.append(Request(ids, count, room, temperature, key, self.decoding.top_p))
        if not requests:
            return

        def finish(r: int, i: int, completion: Completion) -> None:
            item, sample, before, prompt, _ = asked[r]
            text = self.renderer.decode(completion.text_ids)
            turn = Turn(prompt, text, len(completion.ids), completion.finish_reason)
            deliver(item, sample + i, [*before, turn])

        self._sampler.generate(requests, on_finish=finish)

    @cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self.model, stop_ids=self.stop_ids, max_slots=self.decoding.max_slots, max_len=self.context)

    def _encode(self, prompt: str, question: str) -> list[int]:
        try:
            ids = self.renderer.encode(prompt, question)
        except ValueError as error:
            raise UnreadableError("the question holds characters that this model's tokenizer has no token for") from error
        if len(ids) >= self.context:
            raise UnreadableError(f"the prompt has {len(ids)} tokens, the model takes {self.context}")
        return ids


def answer_text(turn: Turn, mode: str) -> str:
    """What is scored of a response: the body of its answer pair under the refine prompt; under the plain one what follows
    native thinking, or the answer pair in that: trained models sometimes write one there, too.
    """
    if mode == "refine":
        return answer_body(turn.response)
    text = plain_answer(_with_opening(turn))
    return answer_body(text) or text


def without_thinking(turn: Turn) -> str:
    """A plain response as the next prompt shows it. Of thinking that never ended everything is shown: there is nothing else."""
    return plain_answer(_with_opening(turn)) or turn.response.strip()


def says_it_holds(turn: Turn) -> bool:
    """Whether a review leaves the solution as it is: then the answer before it stands."""
    said = " ".join(plain_answer(_with_opening(turn)).casefold().split())
    return said.strip(" .!'\"*") == HOLDS.casefold().strip(".")


def _with_opening(turn: Turn) -> str:
    """Some templates open native thinking in the prompt: without its tag, thinking that never ends would pass for an answer."""
    opened = turn.prompt.rstrip().endswith("<think>")
    return "<think>" + turn.response if opened else turn.response
