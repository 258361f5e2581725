"""Plain records that travel between the stages of the loop."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """Several samples of one prompt.

    Attributes:
        prompt_ids: token ids of the rendered prompt.
        num_samples: completions to draw; they share one prefill.
        max_new_tokens: longest completion, its stop token included; a list gives each sample its own.
        temperature: logits are divided by it; 0 is greedy.
        seed_key: anything with a stable repr (a tuple of ints and strings, say). Sample i of a request is a pure function of
            the weights, the prompt and (seed_key, i).
        top_p: nucleus sampling, for evaluation; training refuses anything but 1.
    """

    prompt_ids: list[int]
    num_samples: int
    max_new_tokens: int | list[int]
    temperature: float
    seed_key: Any
    top_p: float = 1.0

    @property
    def limits(self) -> list[int]:
        """The longest completion of each sample."""
        return [self.max_new_tokens] * self.num_samples if isinstance(self.max_new_tokens, int) else self.max_new_tokens


@dataclass(frozen=True)
class Completion:
    """One sampled text, as it was sampled.

    Attributes:
        ids: generated token ids, the stop token included.
        logprobs: log-prob of each id under softmax(logits / temperature), before any top-p cut; at temperature 0 under
            softmax(logits).
        finish_reason: "stop" (a stop token was drawn) or "length" (max_new_tokens were).
        temperature, top_p: those of the request.
        policy_version: number of optimizer steps behind the weights that drew it.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str
    temperature: float = 1.0
    top_p: float = 1.0
    policy_version: int = 0

    @property
    def text_ids(self) -> list[int]:
        """The ids without the stop token: what is decoded and judged."""
        return self.ids[:-1] if self.finish_reason == "stop" else self.ids


@dataclass
class Sample:
    """One response with everything known about it; a line of rollouts/*.jsonl.

    Attributes:
        mode: "refine" or "plain", the system prompt it was drawn with.
        accuracy: the judge's score in [0, 1]; None when judging failed.
        format: Eq. 4; None for plain samples.
        refine, reward: the rest of Eq. 7 and its total; None for plain samples and failed scores.
        advantage: Eq. 2; 0 for samples that are not trained on.
        trained: whether the optimizer step used it.
    """

    prompt_ids: list[int]
    completion: Completion
    text: str
    mode: str
    accuracy: float | None = None
    format: float | None = None
    refine: float | None = None
    reward: float | None = None
    refinements: int = 0
    advantage: float = 0.0
    trained: bool = False


@dataclass
class Group:
    """All samples of one question.

    Attributes:
        baseline: mean accuracy of plain answers, the baseline of Eq. 6; None when not needed or not known.
        dropped: why the question is not trained on ("no baseline", "too few scores", "equal rewards"), or "".
    """

    example_id: str
    question: str
    reference: str
    refine_samples: list[Sample] = field(default_factory=list)
    plain_samples: list[Sample] = field(default_factory=list)
    baseline: float | None = None
    dropped: str = ""
