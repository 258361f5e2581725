"""Made-up parts of a run: groups and samples, a tokenizer, a hub."""

from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
from conftest import random_prompts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl.config import PRESETS, Config
from rl.records import Completion, Group, Request, Sample
from rl.rollout import assign_rewards, make_sample
from rl.sampler import Sampler
from rl.weights.policy import TrainState, make_optimizer

GOOD = "<think>9:351><refine>8:312></refine></think><answer>8</answer>"
STOP = 0  # also the id that padding happens to use
REWARDS = [[1.0, 2.0, 0.0, 3.0], [2.0, 2.0, -1.0, 2.0], [0.5, 1.5, 2.5, 0.0]]


def character_tokenizer(pieces=(), without: str = "", chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a character, but for `pieces`; ASCII only, and nothing of `without`."""
    characters = [c for c in ("\n", *map(chr, range(32, 127))) if c not in without]
    vocab = {token: n for n, token in enumerate(dict.fromkeys([*characters, *pieces, "<unk>"]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    pattern = "|".join([*pieces, r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=chat_template)


def fake_hub(monkeypatch, folder: Path, rows: list[dict]) -> list[tuple]:
    """Let the hub give these rows, a file for each. Return the list of its requests: (data set, files, kind, revision)."""
    requests = []

    def download(repository, *, allow_patterns, repo_type, revision):
        requests.append((repository, allow_patterns, repo_type, revision))
        (folder / allow_patterns).parent.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(rows):
            file = (folder / allow_patterns).with_name(f"{number:04d}.parquet")
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
        return str(folder)

    monkeypatch.setattr("data.examples.snapshot_download", download)
    return requests


def rollout_config(**changes) -> Config:
    """Return the configuration of small rollouts with plain answers."""
    small = {"max_new_tokens": 20, "group_size": 4, "num_plain": 3, "plain_policy": "current"}
    return Config(**{**PRESETS["demo"], "preset": "demo", **small, **changes})


def sample(text: str, mode: str = "refine", accuracy=None) -> Sample:
    """Make a sample of a text as a rollout does, with its score; its ids do not matter."""
    made = make_sample(Request([1], 1, 1, 1.0, 0), Completion([2], [-1.0], "stop", 1.0), text, mode)
    made.accuracy = accuracy
    return made


def rewarded(text: str, accuracy: float, baseline: float | None, **flags) -> Sample:
    """Make a sample with the rewards that a run with these flags gives it."""
    group = Group("id", "q", "r", refine_samples=[sample(text, accuracy=accuracy)], baseline=baseline)
    assign_rewards([group], Config(**flags))
    return group.refine_samples[0]


def update_config(**changes) -> Config:
    """Return the configuration of updates on `sampled_groups`, which are drawn at this temperature."""
    return replace(Config(**{**PRESETS["demo"], "preset": "demo"}), temperature=0.9, **changes)


def train_state(model, config: Config, reference=None) -> TrainState:
    """What is trained, with the optimizer of the configuration."""
    return TrainState(model, make_optimizer(model, config), reference)


def sampled_groups(model, rewards, new_tokens=(6, 9, 4)) -> list[Group]:
    """Sample one group from the model for each row of rewards (None: the judge failed)."""
    prompts = random_prompts([4, 7, 5][: len(rewards)])
    requests = [
        Request(p, len(row), n, 0.9, ("group", i))
        for i, (p, row, n) in enumerate(zip(prompts, rewards, new_tokens, strict=False))
    ]
    drawn = Sampler(model, stop_ids=[STOP, 7, 8], max_slots=64, max_len=64).generate(requests)
    groups = []
    for request, completions, row in zip(requests, drawn, rewards, strict=True):
        samples = [Sample(request.prompt_ids, c, "", "refine", reward=r) for c, r in zip(completions, row, strict=True)]
        groups.append(Group("id", "q", "a", refine_samples=samples))
    return groups
