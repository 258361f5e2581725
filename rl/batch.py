"""From chosen samples to the tensors of an optimizer step: micro-batches, dealt to ranks.

Masks come from the lengths the sampler reported. No id has a special meaning here, so padding with the end token is safe.

Shapes: B sequences, T tokens.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from data.examples import stable_seed
from rl.config import Config
from rl.distributed import gather, rank, world_size
from rl.records import Completion, Sample

PAD_ID = 0  # any id will do: padding is masked by length
SMALL_SHARE = 0.25  # of a rank's tokens; larger groups are split, so that ranks stay balanced


@dataclass
class MicroBatch:
    """Samples of one forward, padded on the right. Row b is `samples[b]`; rows that share a prompt follow one another.

    Attributes:
        ids_BT: prompt and completion.
        mask_BT: the completion tokens, stop token included.
        sampler_logp_BT: log-probs recorded while sampling; 0 outside the mask.
        old_logp_BT, ref_logp_BT: log-probs under the old policy and the reference, where needed.
    """

    samples: list[Sample]
    ids_BT: Tensor
    mask_BT: Tensor
    sampler_logp_BT: Tensor
    old_logp_BT: Tensor | None = None
    ref_logp_BT: Tensor | None = None

    @property
    def advantages_B(self) -> Tensor:
        return torch.tensor([s.advantage for s in self.samples], dtype=torch.float64, device=self.ids_BT.device)


def pad_sequences(pairs: list[tuple[list[int], list[int]]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(prompt ids, response ids) pairs -> ids_BT, padded on the right, and mask_BT, true on the responses."""
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    ids_BT = torch.full((len(pairs), longest), PAD_ID)
    mask_BT = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids_BT[row, :end] = torch.tensor(prompt + response)
        mask_BT[row, len(prompt) : end] = True
    return ids_BT.to(device), mask_BT.to(device)


def make_minibatches(samples: list[Sample], config: Config, step: int, device: torch.device) -> list[list[MicroBatch]]:
    """Make this rank's micro-batches of every minibatch, each as many as the rank with most has: all ranks stay in step."""
    minibatches = deal_minibatches(samples, config, step, device, rank=rank(), ranks=world_size())
    most = [max(counts) for counts in zip(*gather([len(part) for part in minibatches]), strict=True)]
    return [part + [make_dummy(device) for _ in range(len(part), n)] for part, n in zip(minibatches, most, strict=True)]


def deal_minibatches(
    samples: list[Sample], config: Config, step: int, device: torch.device, *, rank: int = 0, ranks: int = 1
) -> list[list[MicroBatch]]:
    """Deal the samples of a step into minibatches (one optimizer step each), each a list of micro-batches.

    The deal is a pure function of (seed, step), and of prompts and lengths where it is to several ranks: each of them calls
    this with the same samples and gets its own share, which may be empty. A micro-batch computes at most `micro_batch_tokens`
    tokens (one sample at least); a prompt counts once for the samples that share it.
    """
    generator = torch.Generator().manual_seed(stable_seed("minibatches", config.seed, step))
    order = torch.randperm(len(samples), generator=generator).tolist() if config.minibatches > 1 else range(len(samples))
    dealt = [[samples[i] for i in list(order)[part :: config.minibatches]] for part in range(config.minibatches)]
    shares = [balance(part, ranks)[rank] if ranks > 1 else part for part in dealt if part]
    return [[_to_micro_batch(part, device) for part in split_by_tokens(s, config.micro_batch_tokens)] for s in shares]


def split_by_tokens(samples: list[Sample], budget: int) -> list[list[Sample]]:
    """Split samples into parts of at most `budget` tokens, one sample at least; a prompt counts once in each part."""
    parts: list[list[Sample]] = []
    room = 0
    for group in sorted(_by_prompt(samples), key=_longest, reverse=True):  # alike in length, the longest first
        prompt = group[0].prompt_ids
        is_open = False  # the prompt is part of the current micro-batch
        for sample in sorted(group, key=_length, reverse=True):
            need = _length(sample) - len(prompt) * is_open
            if not parts or need > room:
                parts.append([])
                need, room = _length(sample), budget
            parts[-1].append(sample)
            room, is_open = room - need, True
    return parts


def _by_prompt(samples: list[Sample]) -> list[list[Sample]]:
    groups: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[tuple(sample.prompt_ids)].append(sample)
    return list(groups.values())


def _length(sample: Sample) -> int:
    return len(sample.prompt_ids) + len(sample.completion.ids)


def _longest(group: list[Sample]) -> int:
    return max(map(_length, group))


def _to_micro_batch(samples: list[Sample], device: torch.device) -> MicroBatch:
    ids_BT, mask_BT = pad_sequences([(s.prompt_ids, s.completion.ids) for s in samples], device)
    logprobs = torch.tensor([value for s in samples for value in s.completion.logprobs], dtype=torch.float64, device=device)
    sampler_logp_BT = torch.zeros(ids_BT.shape, dtype=torch.float64, device=device).masked_scatter(mask_BT, logprobs)
    return MicroBatch(samples, ids_BT, mask_BT, sampler_logp_BT)


def balance(samples: list[Sample], ranks: int) -> list[list[Sample]]:
    """Share samples out to ranks so that each has about as many tokens: longest first, each to the rank with least so far.

    Samples of one prompt go to one rank, which computes the prompt once, unless they are much of what a rank gets.
    """
    whole = SMALL_SHARE * sum(map(_length, samples)) / ranks
    units = []
    for group in _by_prompt(samples):
        units += [group] if sum(map(_length, group)) <= whole else [[sample] for sample in group]
    shares: list[list[Sample]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for load, unit in sorted(((sum(map(_length, unit)), unit) for unit in units), key=lambda item: -item[0]):
        lightest = loads.index(min(loads))
        shares[lightest] += unit
        loads[lightest] += load
    return shares


def make_dummy(device: torch.device) -> MicroBatch:
    """The smallest micro-batch, of no sample, for a rank that has fewer than others: sharded forwards keep ranks in step."""
    micro = _to_micro_batch([Sample([PAD_ID], Completion([PAD_ID], [0.0], "length"), "", "refine")], device)
    micro.samples = []
    return micro


def denominator(micro_batches: list[MicroBatch], config: Config) -> int:
    """Count what the loss of one optimizer step is divided by (see `grpo_loss`) over these micro-batches."""
    samples = sum(len(micro.samples) for micro in micro_batches)
    if config.aggregation == "seq":
        return samples
    if config.aggregation == "const":
        return samples * config.max_new_tokens
    return sum(int(micro.mask_BT.sum()) for micro in micro_batches if micro.samples)
