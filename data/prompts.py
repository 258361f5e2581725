"""The way from a question to the ids that a model completes: system prompts, chat templates, ids that end a completion."""

import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

REFINE_PROMPT = """\
You are a helpful assistant who improves an answer while writing it. Think first, then answer. Put your thinking between \
<think> and </think> and your answer between <answer> and </answer>; use each pair exactly once.
Begin your thinking with a first idea of how to approach the task. Whenever something should be clarified, completed, \
corrected or reasoned better, open a refinement inside your thinking: between <refine> and </refine>, say what you \
reconsider and write the improvement. Refine as often as it helps, and not at all if nothing is gained. After each \
refinement go on thinking from the improved state.
The structure of your response:
<think> first thoughts <refine> what is reconsidered, and the improvement </refine> further thoughts </think>
<answer> the answer </answer>"""

EXAMPLE = """

An example. The user asks: A ticket costs 6 dollars. What do 4 tickets cost together if the whole order is 5 dollars cheaper?
Your response:
<think> 4 tickets cost 4 x 6 = 24 dollars. With the reduction that is 24 - 4 = 20. <refine> I took off 4, the number of \
tickets. The reduction is 5, so it is 24 - 5 = 19. </refine> The order costs 19 dollars. </think>
<answer> 19 </answer>"""  # of --prompts one-shot: a small model that is shown the format once keeps to it

PLAIN_PROMPT = "You are a helpful assistant. Do the task the user gives you."

PROMPTS_FILE = "prompts.json"
MODES = ("refine", "plain")
SMALL_VOCABULARY = 100  # tokens of a tokenizer whose characters all fit into an error message


@dataclass(frozen=True)
class Prompts:
    """The two system prompts, and the judges' prompts with {question}, {reference} and {answer} (None: the judge's own)."""

    refine: str = REFINE_PROMPT
    plain: str = PLAIN_PROMPT
    judge: str | None = None  # for a judge behind a server: a number from 0 to 1
    grade: str | None = None  # for an in-process judge: a digit

    @classmethod
    def load(cls, path: str | Path) -> "Prompts":
        """Read a JSON object with any of "refine", "plain", "judge" and "grade"; what is absent keeps its default."""
        try:
            texts = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read prompts from {path}: {error}") from error
        names = [field.name for field in fields(cls)]
        if not isinstance(texts, dict) or not all(n in names and isinstance(t, str) for n, t in texts.items()):
            raise ValueError(f"{path} must be a JSON object with texts under {names}")
        return cls(**texts)

    def save(self, folder: Path) -> None:
        """Write prompts.json, so that a trained model later gets the prompts it was trained with."""
        texts = {name: text for name, text in asdict(self).items() if text is not None}
        (folder / PROMPTS_FILE).write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_prompts(file: str | None, model_folder: Path) -> Prompts:
    """Return the prompts of `--prompts` (a file, or one-shot), else those saved with the model, else the defaults."""
    if file == "one-shot":
        return Prompts(refine=REFINE_PROMPT + EXAMPLE)
    if file:
        return Prompts.load(file)
    saved = model_folder / PROMPTS_FILE
    return Prompts.load(saved) if saved.is_file() else Prompts()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder, without running code from it. A damaged one is a ValueError."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except StrictDataclassError as error:
        raise ValueError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # its files may be damaged in many ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{folder} holds no usable tokenizer: {reason[0]}") from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise a ValueError if the tokenizer has ids beyond the embedding's `rows`. Fewer are usual: embeddings are padded."""
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model's embedding only {rows} rows: another model's?")


class PromptRenderer:
    """A renderer of questions in the two modes, for one tokenizer.

    The refine prompt never ends with an open or empty think block, because the format reward reads the `<think>` that the
    policy writes. A template's own block is cut off. Without `plain_thinking` the plain prompt has thinking switched off, in
    templates that know the switch (Qwen3).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, *, plain_thinking: bool = True) -> None:
        self.tokenizer, self.prompts, self.plain_thinking = tokenizer, prompts, plain_thinking
        self._ids: dict[tuple[str, str], array] = {}  # templates are slow; questions come back every epoch

    def text(self, question: str, mode: str, turns: Sequence[tuple[str, str]] = ()) -> str:
        """Return the rendered prompt of a question and the `turns` after it, up to where the model goes on.

        A turn is a response and the user's reply to it. Responses should come without their native thinking, because some
        templates (Qwen3's) leave earlier thinking out and others do not.
        """
        assert mode in MODES, mode
        system = self.prompts.refine if mode == "refine" else self.prompts.plain
        if not self.tokenizer.chat_template:
            replies = "".join(f" {response}\n\nUser: {reply}\n\nAssistant:" for response, reply in turns)
            return f"{system}\n\nUser: {question}\n\nAssistant:{replies}"
        from jinja2 import TemplateError  # chat templates alone need it

        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        for response, reply in turns:
            messages += [{"role": "assistant", "content": response}, {"role": "user", "content": reply}]
        switch = {"enable_thinking": False} if mode == "plain" and not self.plain_thinking else {}
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switch)
        except TemplateError as error:
            raise ValueError(f"the model's chat template cannot render system prompt and question: {error}") from error
        return re.sub(r"<think>\s*(</think>\s*)?\Z", "", text) if mode == "refine" else text

    def ids(self, question: str, mode: str) -> list[int]:
        """Return the token ids of the rendered prompt. A question that the tokenizer cannot represent is a ValueError."""
        if (question, mode) not in self._ids:
            self._ids[question, mode] = array("I", self.encode(self.text(question, mode), question))  # 4 bytes an id
        return self._ids[question, mode].tolist()

    def encode(self, prompt: str, question: str) -> list[int]:
        """Return the token ids of a prompt that `text` rendered for a question; errors as in `ids`."""
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the question {question[:80]!r} is no valid Unicode: half of a surrogate pair") from error
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in ids:
            characters = "".join(sorted(token for token in self.tokenizer.get_vocab() if len(token) == 1))
            hint = f"; it knows only {characters}" if len(self.tokenizer) < SMALL_VOCABULARY else ""
            raise ValueError(f"the tokenizer of this model cannot represent the question {question[:80]!r}{hint}")
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids, tags and special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[str]]:
    """Return every id that ends a completion, with its sources.

    No single source is enough, because the config of a base model ends documents with one token while its chat template ends
    turns with another.
    """
    named: list[tuple[str, object]] = []  # (source, an id or a list of ids or None)
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            named.append((name, _eos_of(folder / name)))
    named += [("tokenizer", tokenizer.eos_token_id), ("chat template", _turn_end_id(tokenizer))]
    found: dict[int, list[str]] = {}
    for name, ids in named:
        for token_id in ids if isinstance(ids, list) else [ids]:
            if token_id is not None:
                found.setdefault(token_id, []).append(name)
    if not found:
        raise ValueError(f"{folder} names no end-of-text token in its configs, tokenizer or chat template")
    return dict(sorted(found.items()))


def _eos_of(file: Path) -> object:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return content.get("eos_token_id")


def _turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template puts right behind an assistant's turn, if it does."""
    if not tokenizer.chat_template:
        return None
    marker = "0"  # a text that every tokenizer can represent
    messages = [{"role": "user", "content": marker}, {"role": "assistant", "content": marker}]
    tail = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(marker)[2]
    ids = tokenizer.encode(tail.strip(), add_special_tokens=False)
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None  # an ordinary token may begin any sentence
