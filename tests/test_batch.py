"""From groups to micro-batches: who is trained on, how samples are dealt out, what the loss is divided by."""

from dataclasses import replace

import pytest
import torch
from conftest import make_model
from samples import REWARDS, STOP, sampled_groups, update_config

from rl.advantages import select_samples
from rl.batch import denominator, make_dummy, make_minibatches
from rl.logprobs import token_logprobs
from rl.records import Completion, Sample


def test_stop_token_is_trained_although_it_is_the_padding_id():
    """Bug guarded: `mask = ids != pad` with pad == eos; the model then never learns to stop (released code and three peers)."""
    completion = Completion([5, 6, STOP], [-1.0, -1.0, -1.0], "stop", 0.9)
    longer = Completion([5, 6, 9, 9, STOP], [-1.0] * 5, "stop", 0.9)
    samples = [Sample([3, STOP, 4], c, "", "refine", advantage=1.0) for c in (completion, longer)]
    (micro,) = make_minibatches(samples, update_config(), 0, torch.device("cpu"))[0]
    row = next(i for i, s in enumerate(micro.samples) if s.completion is completion)
    assert micro.ids_BT[row].tolist() == [3, STOP, 4, 5, 6, STOP, STOP, STOP]
    assert micro.mask_BT[row].tolist() == [False, False, False, True, True, True, False, False]
    model = make_model("qwen2")
    logp, _ = token_logprobs(model, micro.ids_BT, micro.mask_BT, temperature=0.9)
    assert logp[row, 5] != 0


def test_micro_batches_fill_their_budget():
    """Bug guarded: a prompt counted for each of its samples, or not at all where a micro-batch begins within a group."""
    samples = [Sample([7] * 10, Completion([1] * 5, [0.0] * 5, "stop"), "", "refine", trained=True) for _ in range(9)]
    (part,) = make_minibatches(samples, update_config(micro_batch_tokens=30), 0, torch.device("cpu"))
    assert [len(micro.samples) for micro in part] == [4, 4, 1], "10 + 4 x 5 tokens"


def test_denominators_count_what_is_trained():
    """Bug guarded: dividing by samples that failed, were cut or belong to dropped groups."""
    rewards = [[1.0, None, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0], [1.0, None, None, None]]
    groups = sampled_groups(make_model("qwen2"), rewards)
    settings = update_config(aggregation="seq")
    samples = select_samples(groups, settings)
    assert [group.dropped for group in groups] == ["", "equal rewards", "too few scores"]
    assert len(samples) == 3 == sum(s.trained for g in groups for s in g.refine_samples)
    (part,) = make_minibatches(samples, settings, 0, torch.device("cpu"))
    tokens = sum(len(s.completion.ids) for s in samples)
    assert denominator(part, settings) == 3
    assert denominator(part, replace(settings, aggregation="token")) == tokens
    assert denominator(part, replace(settings, aggregation="const")) == 3 * settings.max_new_tokens
    assert sum(s.advantage for s in groups[0].refine_samples) == pytest.approx(0, abs=1e-12)


def test_rewards_that_hardly_differ_are_equal():
    """Bug guarded: a group trained on the rounding of its rewards, which division by their spread makes large."""
    groups = sampled_groups(make_model("qwen2"), [[1.0, 1.00005, 1.0, 1.0], [1.0, 1.001, 1.0, 1.0]])
    assert len(select_samples(groups, update_config())) == 4
    assert [group.dropped for group in groups] == ["equal rewards", ""]


@pytest.mark.parametrize("aggregation", ["seq", "token", "const"])
def test_a_dummy_counts_for_nothing(aggregation):
    """Bug guarded: a rank without samples of its own that makes every gradient a little smaller."""
    settings = update_config(aggregation=aggregation)
    samples = select_samples(sampled_groups(make_model("qwen2"), REWARDS), settings)
    (part,) = make_minibatches(samples, settings, 0, torch.device("cpu"))
    assert denominator([*part, make_dummy(torch.device("cpu"))], settings) == denominator(part, settings)


def test_truncated_responses_can_be_left_out():
    groups = sampled_groups(make_model("qwen2"), REWARDS)
    cut = [s for g in groups for s in g.refine_samples if s.completion.finish_reason == "length"]
    kept = select_samples(groups, update_config(mask_truncated=True))
    assert cut
    assert not {id(s) for s in cut} & {id(s) for s in kept}
    assert len(kept) + len(cut) == 12


def test_nucleus_samples_are_refused():
    """Bug guarded: training on samples whose log-probs are not those of the policy."""
    groups = sampled_groups(make_model("qwen2"), REWARDS)
    sample = groups[0].refine_samples[0]
    sample.completion = replace(sample.completion, top_p=0.9)
    with pytest.raises(ValueError, match="top_p"):
        select_samples(groups, update_config())


def test_the_deal_into_minibatches_depends_on_seed_and_step():
    groups = sampled_groups(make_model("qwen2"), REWARDS)

    def deal(step, **changes):
        settings = update_config(minibatches=3, **changes)
        parts = make_minibatches(select_samples(groups, settings), settings, step, torch.device("cpu"))
        return [sorted(id(s) for micro in part for s in micro.samples) for part in parts]

    assert deal(0) == deal(0)
    assert deal(0) != deal(1)
    assert deal(0) != deal(0, seed=1)
