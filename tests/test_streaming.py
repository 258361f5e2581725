"""A reference model in host memory: the log-probs of the resident one, bit for bit."""

import pytest
import torch
from conftest import make_model, random_prompts, write_task_folder

from data.prompts import load_prompts, load_tokenizer
from model import load_model
from rewards.judge import Judgement
from rewards.judge_prompts import GRADE_PROMPT
from rl.judging.local_judge import LocalJudge
from rl.logprobs import token_logprobs
from rl.records import Request
from rl.sampler import Sampler
from rl.weights.streaming import stream_from_host

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layers", [1, 4, 5])
def test_log_probs_are_those_of_the_resident_model(family, tied, dtype, layers):
    """Bug guarded: a layer computed with another one's weights, a stage overwritten too early, a tied head left behind."""
    changes = dict(tie_word_embeddings=tied, num_hidden_layers=layers)
    resident, streamed = (make_model(family, dtype, **changes) for _ in range(2))
    streamed = stream_from_host(streamed, CPU)
    ids = torch.tensor(random_prompts([11, 11, 11]))
    with torch.no_grad():
        for _ in range(2):  # the second forward finds the last layers of the first in its stages
            wanted, got = (token_logprobs(m, ids, temperature=0.9) for m in (resident, streamed))
            assert torch.equal(wanted[0], got[0])
            assert torch.equal(wanted[1], got[1])


def test_caches_are_told_the_right_layer():
    """Bug guarded: two stages that call themselves layers 0 and 1 throughout, so that a KV cache overwrites itself."""
    asked = [Request(prompt, 3, 8, 1.0, n) for n, prompt in enumerate(random_prompts((5, 9)))]
    models = make_model("qwen2"), stream_from_host(make_model("qwen2"), CPU)
    drawn = [Sampler(m, stop_ids=[0], max_slots=4, max_len=32).generate(asked) for m in models]
    assert [[c.ids for c in group] for group in drawn[0]] == [[c.ids for c in group] for group in drawn[1]]


def test_a_streamed_judge_gives_the_same_scores(tmp_path):
    folder = write_task_folder(tmp_path)
    tokenizer, template = load_tokenizer(folder), load_prompts(None, folder).grade or GRADE_PROMPT
    scores = []
    for model in (load_model(folder), stream_from_host(load_model(folder), CPU)):
        judge = LocalJudge(model, tokenizer, prompt_template=template)
        futures = [judge.submit(Judgement("274/39", "7", answer)) for answer in ("7", "8", "no idea")]
        judge.finish()
        scores.append([future.result() for future in futures])
    assert scores[0] == scores[1]
    assert None not in scores[0]


def test_a_forward_that_failed_leaves_the_model_usable():
    """Bug guarded: an iteration that was given up, whose stages the next forward then mixes with its own."""
    resident, streamed = make_model("qwen3"), stream_from_host(make_model("qwen3"), CPU)
    layers = iter(streamed.model.layers)
    next(layers)
    next(layers)
    layers.close()
    ids = torch.tensor(random_prompts([7]))
    with torch.no_grad():
        assert torch.equal(resident(ids), streamed(ids))


def test_only_the_head_and_two_layers_are_on_the_device():
    """Bug guarded: layers that stay reachable, so that host memory or the device holds the model twice."""
    model = make_model("qwen2", num_hidden_layers=6)
    one_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    streamed = stream_from_host(model, CPU)
    assert {name for name, _ in streamed.named_parameters()} == {"lm_head.weight", "model.norm.weight"}
    assert [flat.numel() for flat in streamed.model.layers._host] == [one_layer] * 6
    assert [stage.flat.numel() for stage in streamed.model.layers._stages] == [one_layer] * 2
    with pytest.raises(ValueError, match="host memory first"):
        stream_from_host(make_model("qwen2").to("meta"), CPU)
