"""A reference in host memory: log-probs, scores and samples of the resident one, bit for bit."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_same_run, flags, make_model, random_prompts, write_task_folder

import rl.session
import train
from data.prompts import load_prompts, load_tokenizer
from model import save_model
from rewards.judge import Judgement
from rewards.judge_prompts import GRADE_PROMPT
from rl.judging.local_judge import LocalJudge
from rl.logprobs import token_logprobs
from rl.records import Request
from rl.sampler import Sampler
from rl.weights.memory import plan_run
from rl.weights.policy import WholeWeights, load_reference

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [1, 4])
def test_log_probs_are_those_of_the_resident_model(tmp_path, family, tied, layers):
    """Bug guarded: a layer computed with another one's weights, a tied head left behind, a second forward of stale layers."""
    save_model(make_model(family, torch.float32, tie_word_embeddings=tied, num_hidden_layers=layers), None, tmp_path)
    resident, offloaded = (load_reference(tmp_path, CPU, offload=offload) for offload in (False, True))
    ids = torch.tensor(random_prompts([11, 11, 11]))
    with torch.no_grad():
        for _ in range(2):
            pairs = zip(*(token_logprobs(model, ids, temperature=0.9) for model in (resident, offloaded)), strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert not any(parameter.requires_grad for parameter in offloaded.parameters())


def test_a_whole_copy_judges_and_writes_and_goes_again(tmp_path):
    """Bug guarded: a judge or sampler that computes with sharded layers, other scores, a copy that stays."""
    folder = write_task_folder(tmp_path)
    tokenizer, template = load_tokenizer(folder), load_prompts(None, folder).grade or GRADE_PROMPT
    requests = [Request(prompt, 3, 8, 1.0, n) for n, prompt in enumerate(random_prompts((5, 9), vocab=15))]
    results = []
    for offload in (False, True):
        weights = WholeWeights(load_reference(folder, CPU, offload=offload))
        for _ in range(2):
            with weights as model:
                judge = LocalJudge(model, tokenizer, prompt_template=template)
                futures = [judge.submit(Judgement("274/39", "7", answer)) for answer in ("7", "8", "no idea")]
                judge.finish()
                drawn = Sampler(model, stop_ids=[0], max_slots=4, max_len=32).generate(requests)
            results.append(([future.result() for future in futures], [[c.ids for c in group] for group in drawn]))
    assert results[0] == results[1] == results[2] == results[3]
    assert None not in results[0][0]
    assert sum(p.untyped_storage().size() for p in weights.model.parameters()) == 0


def test_a_run_is_that_with_the_reference_on_the_device(place, reward_for_length, no_report, monkeypatch):
    """Bug guarded: a plan whose reference in host memory nobody heeds, or one that cannot judge and write plain answers."""
    more = ("--judge", "self", "--plain-policy", "reference", "--resume", "never")
    assert train.main(flags(place, "device", *more)) == 0
    monkeypatch.setattr(rl.session, "plan_run", lambda *args: replace(plan_run(*args), reference_memory="host"))
    loaded = []
    monkeypatch.setattr(
        rl.session,
        "load_reference",
        lambda *args, offload, **more: loaded.append(offload) or load_reference(*args, offload=offload, **more),
    )
    elsewhere = str(place / "elsewhere")  # where no baseline is cached
    assert train.main(flags(place, "host", *more, "--runs-dir", elsewhere)) == 0
    assert loaded == [True]
    assert_same_run(place / "elsewhere/host", place / "runs/device")
