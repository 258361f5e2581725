"""Eq. 5 by a frozen model in this process: `--judge self` (the reference weights) or `--judge PATH` (another local model).

The judge writes nothing. Its prompt ends where its answer would begin, and one forward gives the probability p(g) of each grade
g = 0..9 as the next token, among the grades:

    r_acc = sum_g p(g) g / 9

So a reply cannot fail to parse, and a score is finer than the ten grades. With other symbols, and another way of reading their
probabilities, the judge chooses among options (`likely_option`). The shared beginning of the prompts of a question's answers is
computed once for all of them (`PackedAttention`).

Shapes: T tokens of a chunk, N distinct prompts of a chunk, E embedding, V vocabulary, G grades.
"""

import math
import re
from collections.abc import Callable
from concurrent.futures import Future

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.attention import PackedAttention
from model.transformer import Transformer
from rewards.judge import Judgement, Scorer
from rewards.judge_prompts import build_judge_prompt, check_template

GRADES = "0123456789"
MIN_CONFIDENCE = 0.5  # of the likeliest option; less is no choice
BATCH_TOKENS = 16_384  # of one forward
HEAD_ROWS = 64  # positions whose logits over the whole vocabulary are held at once

Prompt = tuple[int, ...]  # token ids


class LocalJudge(Scorer):
    """A `Scorer` that reads grades off a local model's next-token probabilities.

    `submit` only collects; `finish` scores. A score depends on its item alone, up to rounding, and not on the order of
    submission; equal items are computed once.

    Args:
        model: frozen; used without gradient.
        tokenizer: the judge's own, with its chat template; without one the prompt is plain text that ends with `Grade:`.
        prompt_template: holds {question}, {reference} and {answer}, in this order for speed, and asks for one of `symbols`.
        symbols: what is read off the next token, one character each: by default the digits 0 to 9.
        read: logits of the symbols, a row for each answer -> scores in [0, 1]; NaN becomes None.
        batch_tokens: tokens of one forward. Only a single prompt that is longer exceeds it.

    Raises:
        ValueError: the template lacks a placeholder, or a grade is not a single token behind the prompt.
    """

    may_recover = False  # an answer that it cannot score once it can never score

    def __init__(
        self, model: Transformer, tokenizer: PreTrainedTokenizerBase, *, prompt_template: str, symbols: str = GRADES,
        read: Callable[[Tensor], Tensor] | None = None, batch_tokens: int = BATCH_TOKENS,
    ) -> None:  # fmt: skip
        check_template(prompt_template)
        self.model, self.tokenizer, self.template, self.batch_tokens = model, tokenizer, prompt_template, batch_tokens
        self._read = read or mean_grade
        grade_ids = find_grade_ids(tokenizer, self.render(Judgement("0", "0", "0")), symbols)
        self.grade_ids_G = torch.tensor(grade_ids, device=model.device)
        self._pending: list[tuple[Judgement, Future[float | None]]] = []
        self._scores: list[float | None] = []  # since the last look at the stats
        self.last_failure = ""

    def submit(self, item: Judgement) -> "Future[float | None]":
        """Take one answer and return at once."""
        future: Future[float | None] = Future()
        self._pending.append((item, future))
        return future

    def finish(self) -> None:
        """Score everything submitted since the last call.

        The score is None, and counted, if a prompt is longer than the model's context or its probabilities are not finite.
        """
        if not self._pending:
            return

        # a prompt for each distinct item; those of one question are a group
        items = sorted({item for item, _ in self._pending}, key=lambda item: (item.question, item.reference, item.answer))
        ids = self.tokenizer([self.render(item) for item in items], add_special_tokens=False)["input_ids"]
        prompts = dict(zip(items, map(tuple, ids), strict=True))
        groups: dict[tuple[str, str], set[Prompt]] = {}
        context = self.model.config.max_position_embeddings
        for item, prompt in prompts.items():
            if len(prompt) <= context:
                groups.setdefault((item.question, item.reference), set()).add(prompt)
            else:
                self.last_failure = f"a prompt of {len(prompt)} tokens, where the judge reads {context}"

        # their scores, given to everyone who waits for them
        scores: dict[Prompt, float | None] = {}
        for chunk in chunk_groups(list(groups.values()), self.batch_tokens):
            scores |= self._score(chunk)
        for item, future in self._pending:
            self._scores.append(scores.get(prompts[item]))
            future.set_result(self._scores[-1])
        self._pending = []

    def take_stats(self) -> dict[str, float]:
        """Return `judge/*` since the last call."""
        scores, self._scores = self._scores, []
        return {"judge/calls": len(scores), "judge/failed": scores.count(None)}

    def render(self, item: Judgement) -> str:
        """Return the judge's prompt, up to the grade. Thinking is off, or closed where a template opens it."""
        request = build_judge_prompt(self.template, item)
        if not self.tokenizer.chat_template:
            return f"{request}\n\nGrade:\n"  # a grade behind a space would be a token of another kind in some vocabularies
        messages = [{"role": "user", "content": request}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        return re.sub(r"<think>\s*\Z", "<think>\n\n</think>\n\n", text)

    @torch.no_grad()
    def _score(self, chunk: list[list[Prompt]]) -> dict[Prompt, float | None]:
        """Run one forward over groups of prompts, and return their scores; the prompts of a group begin alike."""
        # each group as its shared prefix and the rest of each prompt
        ids, sizes = [], []
        for group in chunk:
            prefix = shared_length(group)
            ids += group[0][:prefix]
            for prompt in group:
                ids += prompt[prefix:]
            sizes.append((prefix, [len(prompt) - prefix for prompt in group]))

        # the logits of the symbols behind each prompt, a few rows at a time
        attention = PackedAttention(sizes, self.model.device)
        ids_1T = torch.tensor(ids, device=self.model.device)[None]
        hidden_TE = self.model(ids_1T, attention.positions_1T, cache=attention)[0]
        parts = hidden_TE[attention.ends].split(HEAD_ROWS)
        logits_NG = torch.cat([self.model.logits(hidden_NE)[:, self.grade_ids_G] for hidden_NE in parts])

        # scores; NaN becomes None, so that it reaches no mean
        scores = [None if math.isnan(score) else score for score in self._read(logits_NG).tolist()]
        if None in scores:
            self.last_failure = "probabilities of the judge that are not finite, or a choice it is not sure of"
        return dict(zip((prompt for group in chunk for prompt in group), scores, strict=True))


def mean_grade(logits_NG: Tensor) -> Tensor:
    """Return the expected grade of each row, scaled to [0, 1]: a mean under softmax over the G grades; NaN for NaN logits."""
    grades_G = torch.linspace(0, 1, logits_NG.shape[1], dtype=torch.float64, device=logits_NG.device)
    return (logits_NG.double().softmax(-1) @ grades_G).clamp(0, 1)


def likely_option(logits_NG: Tensor) -> Tensor:
    """Return the likeliest of G options of each row, as index / (G - 1); NaN if its probability is below MIN_CONFIDENCE."""
    p_N, index_N = logits_NG.double().softmax(-1).max(-1)
    return torch.where(p_N >= MIN_CONFIDENCE, index_N.double() / (logits_NG.shape[1] - 1), torch.nan)


def find_grade_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, symbols: str = GRADES) -> list[int]:
    """Return the token that each grade becomes right behind a rendered prompt.

    Raises:
        ValueError: a grade is more or less than one token there, is unknown, or shares its token with another.
    """
    before, *behind = tokenizer([prompt, *(prompt + grade for grade in symbols)], add_special_tokens=False)["input_ids"]
    tokens = []
    for grade, ids in zip(symbols, behind, strict=True):
        if ids[:-1] != before or ids[-1] == tokenizer.unk_token_id:
            raise ValueError(
                f"this tokenizer does not write the grade {grade!r} as one token of its own behind the judge's prompt; use "
                "another --judge"
            )
        tokens.append(ids[-1])
    if len(set(tokens)) < len(tokens):
        raise ValueError("this tokenizer writes several grades as the same token; use another --judge")
    return tokens


def shared_length(prompts: list[Prompt]) -> int:
    """Return the number of leading tokens that all prompts share, leaving at least one to each."""
    first, last = min(prompts), max(prompts)  # sorted, everything between them shares what these two share
    most = min(map(len, prompts)) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)


def chunk_groups(groups: list[set[Prompt]], limit: int) -> list[list[list[Prompt]]]:
    """Split groups of prompts into chunks of at most `limit` tokens; a group's shared prefix counts once in each chunk.

    Within a group prompts are in order of length, so that a padded batch of neighbours wastes little. A prompt that is longer
    than `limit` is a chunk of its own.
    """
    chunks: list[list[list[Prompt]]] = []
    room = 0
    for group in groups:
        ordered = sorted(group, key=lambda prompt: (len(prompt), prompt))
        prefix, part = shared_length(ordered), []
        for prompt in ordered:
            need = len(prompt) - prefix * bool(part)
            if need > room:
                chunks.append([])
                room, part, need = limit, [], len(prompt)
            if not part:
                chunks[-1].append(part)
            part.append(prompt)
            room -= need
    return chunks
