"""The embedded task: trial-quotient division, the smallest problem in which refinement is worth learning.

A question is N/d, the answer q = N // d. Schoolbook method: guess the quotient from the leading digits, multiply out, compare:

    274/39   <think>9:351><refine>8:312></refine><refine>7:273<</refine></think><answer>7</answer>

A trial `q:ppp>` says that the product exceeds N, `q:ppp<` that it fits. The guess (N // 10) // (d // 10) is right for 60 % of
the questions and otherwise mostly one too big. Checking is easier than guessing, so a model can see an error before it answers.

Each character, each tag and each whole system prompt is one token.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.examples import Example, stable_seed
from data.prompts import Prompts

CHARACTERS = "0123456789/=:<>"
TAGS = ("<think>", "</think>", "<refine>", "</refine>", "<answer>", "</answer>")
END, UNKNOWN = "<|end|>", "<|unknown|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'user' %}={% elif message.role == 'assistant' %}" + END + "{% endif %}{% endfor %}"
)
MAX_REFINEMENTS = 3


def all_questions() -> Iterator[tuple[int, int]]:
    """Yield every (N, d) with N in 100..999, d in 31..79 and a quotient in 2..9: 21,180 questions."""
    for divisor in range(31, 80):
        for dividend in range(100, 1000):
            if 2 <= dividend // divisor <= 9:
                yield dividend, divisor


def load_split(held_out: bool) -> list[Example]:
    """Return the training or the held-out questions, in a fixed order; one question in five is held out."""
    part = [(n, d) for n, d in all_questions() if (stable_seed("division", n, d) % 5 == 0) is held_out]
    return [Example(f"{n}/{d}", f"{n}/{d}", str(n // d)) for n, d in part]


def estimate(dividend: int, divisor: int) -> int:
    """Return the guess from the leading digits: its systematic error is what refinement can mend."""
    return min(9, (dividend // 10) // (divisor // 10))


@dataclass(frozen=True)
class Corpus:
    """The habits of the warm-start corpus: refinements occur, mend errors more often than not, and are rarer than needed.

    They must stay rare (refine_wrong well below one half), so that the greedy warm-started model never refines and learns the
    habit from the reward. They must be useful on average, or they die out in the first steps of RL.
    """

    plain_share: float = 0.45  # traces under the plain prompt, which never refine
    noise_wrong: float = 0.03  # a wrong guess is lowered by one (mostly right then)
    noise_right: float = 0.03  # a right guess is raised by one
    refine_wrong: float = 0.38  # a wrong trial is followed by a refinement
    refine_right: float = 0.15  # a right first trial is
    refine_again: float = 0.05  # a right trial that is itself a refinement is
    step_towards: float = 0.75  # a refinement of a wrong trial moves one towards the quotient
    harm: float = 0.05  # a refinement of a right trial leaves it

    def trace(self, rng: random.Random, dividend: int, divisor: int, mode: str) -> str:
        """Write one response to a question."""
        quotient, guess = dividend // divisor, estimate(dividend, divisor)
        if guess != quotient and rng.random() < self.noise_wrong:
            guess -= 1
        elif guess == quotient and rng.random() < self.noise_right:
            guess += 1
        trial = _clamp(guess)
        think = _trial_text(trial, dividend, divisor)
        for count in range(MAX_REFINEMENTS if mode == "refine" else 0):
            right_rate = self.refine_right if count == 0 else self.refine_again
            if rng.random() >= (right_rate if trial == quotient else self.refine_wrong):
                break
            trial = self._refine(rng, trial, quotient)
            think += f"<refine>{_trial_text(trial, dividend, divisor)}</refine>"
        return f"<think>{think}</think><answer>{trial}</answer>"

    def _refine(self, rng: random.Random, trial: int, quotient: int) -> int:
        if trial == quotient:
            return _clamp(trial + rng.choice((-1, 1))) if rng.random() < self.harm else trial
        if rng.random() < self.step_towards:
            return trial + (1 if quotient > trial else -1)
        return _clamp(rng.choice((trial, trial + 1, trial - 2)))

    def batch(self, examples: list[Example], size: int, *seed: object) -> list[tuple[Example, str, str]]:
        """Draw `size` rows of (question, mode, response): a pure function of the seed."""
        rng = random.Random(stable_seed("corpus", *seed))
        rows = []
        for _ in range(size):
            example = rng.choice(examples)
            mode = "plain" if rng.random() < self.plain_share else "refine"
            rows.append((example, mode, self.trace(rng, *parse_question(example.question), mode)))
        return rows


def parse_question(question: str) -> tuple[int, int]:
    """Return (N, d) of "N/d"; raise a ValueError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", question.strip())
    if match is None or int(match[2]) == 0:
        raise ValueError(f"a question of the embedded task is N/d, for example 274/39; got {question!r}")
    return int(match[1]), int(match[2])


def _clamp(trial: int) -> int:
    return min(9, max(1, trial))


def _trial_text(trial: int, dividend: int, divisor: int) -> str:
    product = trial * divisor
    return f"{trial}:{product:03d}{'>' if product > dividend else '<'}"


@dataclass(frozen=True)
class Trial:
    """One trial read back from a response."""

    quotient: int
    is_right: bool  # it is the answer
    too_big: bool  # the product exceeds N (by arithmetic, whatever the response claims)
    check_is_right: bool  # the response's own comparison sign agrees with the arithmetic
    refined: bool  # a refinement follows


def read_trials(question: str, text: str) -> list[Trial]:
    """Return the trials of a response, in order; malformed parts are skipped."""
    dividend, divisor = parse_question(question)
    return [
        Trial(
            quotient=int(trial),
            is_right=int(trial) == dividend // divisor,
            too_big=int(trial) * divisor > dividend,
            check_is_right=(sign == ">") == (int(trial) * divisor > dividend),
            refined=bool(refine),
        )
        for trial, sign, refine in re.findall(r"(\d):\d*([<>])(?:</refine>)?(<refine>)?", text)
    ]


def build_tokenizer(prompts: Prompts) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each character, each tag and each whole system prompt."""
    vocabulary = {token: index for index, token in enumerate((UNKNOWN, END, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN, chat_template=CHAT_TEMPLATE
    )
    fast.add_tokens([AddedToken(text, normalized=False) for text in (*TAGS, prompts.refine, prompts.plain)])
    return fast
