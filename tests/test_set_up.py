"""What a run takes before its first step: flags, data, judges, the reference; and what it refuses."""

import io
import os
from dataclasses import asdict, fields, replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from conftest import make_model, write_questions, write_task_folder
from samples import fake_hub
from tqdm import tqdm

import evaluate
import rl.run.processes
import train
from data.division import build_tokenizer
from data.examples import load_examples
from data.prompts import Prompts
from evaluate import EvalConfig, load
from model import load_model, save_model
from rewards.judge import NAMED_JUDGES, RuleScorer
from rl.config import PRESETS, Config, parse_config
from rl.distributed import BACKENDS
from rl.run.folder import _with_its_batch
from rl.run.processes import process_group
from rl.run.wandb import group_name
from rl.session import open_session
from rl.weights.policy import WholeWeights


def test_a_missing_wandb_is_said_before_anything_is_loaded(monkeypatch):
    """Bug guarded: a traceback after minutes of loading, on an image that has torch and transformers alone."""
    monkeypatch.setattr("rl.session.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb is not installed.*--wandb off"):
        open_session(parse_config(["--model", "nowhere"]))


@pytest.fixture
def session_flags(tmp_path) -> list[str]:
    """The flags of a session with a small model and some questions."""
    folder, data = write_task_folder(tmp_path / "model"), write_questions(tmp_path / "data.jsonl")
    return ["--model", str(folder), "--data", str(data), "--judge", "rules", "--runs-dir", str(tmp_path)]


def test_without_kl_no_reference_is_loaded(session_flags, monkeypatch):
    """Bug guarded: 14 GiB for a reference that nothing asks."""
    loads = []
    monkeypatch.setattr("rl.weights.policy.load_model", lambda *a, **k: loads.append(a) or load_model(*a, **k))
    for beta, plain_policy, count in (("0", "current", 1), ("0.04", "current", 2), ("0", "reference", 2)):
        loads.clear()
        more = ["--beta", beta, "--plain-policy", plain_policy, "--run", f"{beta}{count}"]
        session = open_session(parse_config([*session_flags, *more]))
        assert len(loads) == count
        assert (session.state.reference is None) == (beta == "0")
        session.run.close()


@pytest.mark.parametrize(
    ("more", "copies", "entered"), [([], 0, 0), (["--judge", "self"], 1, 1), (["--plain-policy", "reference"], 1, 0)]
)
def test_the_reference_is_made_whole_where_it_judges_or_writes(session_flags, monkeypatch, more, copies, entered):
    """Bug guarded: a copy on every GPU in a run that only takes log-probs; an answer written by a sharded reference."""
    made, entries = [], []

    class Counted(WholeWeights):
        def __init__(self, source):
            made.append(source)
            super().__init__(source)

        def __enter__(self):
            entries.append(self.source)
            return super().__enter__()

    monkeypatch.setattr("rl.session.WholeWeights", Counted)
    # the task's tokenizer has no words for a judge
    monkeypatch.setattr("rl.judging.judge.LocalJudge", lambda *_, **__: RuleScorer())
    session = open_session(parse_config([*session_flags, *more]))
    session.run.close()
    assert (made.count(session.state.reference), entries.count(session.state.reference)) == (copies, entered)


@pytest.mark.parametrize(("local_rank", "is_heard"), [("0", True), ("1", False)])
def test_a_machine_without_gpus_is_said_once_on_it(monkeypatch, capfd, local_rank, is_heard):
    """Bug guarded: processes of another node that end without a word; eight that all say the same."""
    monkeypatch.setenv("RANK", str(8 + int(local_rank)))
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(SystemExit):
        train.main(["--device", "cuda"])
    said = capfd.readouterr().out
    assert ("error: 2 processes on a machine with 1 GPUs: start at most 1 on it" in said) == is_heard


def test_prompt_and_answer_fit_into_the_models_context(session_flags, tmp_path):
    """Bug guarded: positions beyond those that a model was trained on, in training and when it is asked."""
    model = make_model("qwen3", torch.float32, vocab_size=len(build_tokenizer(Prompts())), max_position_embeddings=20)
    save_model(model, build_tokenizer(Prompts()), tmp_path / "model")
    with pytest.raises(ValueError, match="fills the model's context of 20 tokens"):
        open_session(parse_config([*session_flags, "--max-new-tokens", "20"]))
    with pytest.raises(ValueError, match="no prompt fits into 2 tokens"):
        open_session(parse_config([*session_flags, "--max-new-tokens", "18"]))
    open_session(parse_config([*session_flags, "--max-new-tokens", "10", "--run", "fits"])).run.close()
    _, answerer = load(EvalConfig(model=str(tmp_path / "model"), device="cpu", temperature=1.0))
    asked = [answerer.ask(f"{n}/31", "refine")[0]["tokens"] for n in range(100, 110)]
    assert max(asked) <= 20 - 8


def test_the_papers_preset_takes_a_question_on_each_gpu(monkeypatch):
    """Bug guarded: one question for eight GPUs, seven of which wait."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    flags = ["--model", "m", "--preset", "paper"]
    cases = [([], 8), (["--gpus", "4", "--plan"], 4), (["--questions-per-step", "3"], 3), (["--gpus", "4"], 8)]  # only --plan
    assert [parse_config([*flags, *more]).questions_per_step for more, _ in cases] == [count for _, count in cases]
    assert "--questions-per-step" not in group_name(parse_config(flags))
    monkeypatch.delenv("WORLD_SIZE")
    paper = parse_config(flags)
    assert paper.questions_per_step == 1
    saved = asdict(paper) | {"questions_per_step": 8}
    assert _with_its_batch(paper, saved).questions_per_step == 8, "a run keeps its batch on fewer GPUs"
    chosen = replace(paper, questions_per_step=3)
    assert _with_its_batch(chosen, saved) == chosen
    with pytest.raises(ValueError, match="--preset paper needs --model"):
        parse_config(["--preset", "paper"])


def test_presets_set_known_fields_and_flags_win():
    """Bug guarded: a preset with a misspelt field, or one that beats the command line."""
    assert all(set(preset) <= {f.name for f in fields(Config)} for preset in PRESETS.values())
    assert parse_config([]).preset == "demo"
    model = ["--model", "m", "--data", "d"]
    assert parse_config(model).preset == "default"
    paper = parse_config([*model, "--preset", "paper", "--zeta", "0.1"])
    assert (paper.temperature, paper.max_grad_norm, paper.aggregation, paper.zeta) == (0.9, None, "seq", 0.1)
    assert parse_config(["--max-grad-norm", "none"]).max_grad_norm is None


def test_a_judge_of_ones_own_is_a_class_and_its_name(session_flags, monkeypatch):
    """Bug guarded: the plan, the cache of baselines or the demo taking its name for a folder or a hub id."""
    monkeypatch.setitem(NAMED_JUDGES, "length", type("LengthJudge", (RuleScorer,), {}))
    session = open_session(parse_config([*session_flags, "--judge", "length", "--plain-policy", "reference"]))
    session.run.close()
    assert type(session.rollout.scores.scorer).__name__ == "LengthJudge"
    assert parse_config(["--judge", "length"]).judge_kind == "named"
    with pytest.raises(ValueError, match="no judge is called lenght; say rules, length, self"):
        open_session(parse_config([*session_flags, "--judge", "lenght"]))


def test_folders_that_are_no_model(tmp_path):
    """Bug guarded: a tokenizer's inner error for the folder of all runs, or for a run that has not saved anything."""
    (tmp_path / "runs" / "a" / "rollouts").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.json").write_text("{}")
    for folder, words in (("runs", "no model's folder"), ("runs/a", "has no complete checkpoint yet")):
        with pytest.raises(ValueError, match=words):
            load(EvalConfig(model=str(tmp_path / folder), device="cpu"))


def test_training_data_from_the_hub(tmp_path, monkeypatch):
    """Bug guarded: the first file of several alone, another split than was asked for, a row without an answer trained on."""
    rows = [{"question": "1 + 1?", "answer": "so #### 2"}, {"question": "2 + 2?", "answer": "#### 4"}]
    requests = fake_hub(monkeypatch, tmp_path, rows)
    found = load_examples("hub:openai/gsm8k:main:train")
    assert [(e.question, e.reference) for e in found] == [("1 + 1?", "so #### 2"), ("2 + 2?", "#### 4")]
    assert len({e.id for e in found}) == 2
    assert requests == [("openai/gsm8k", "main/train/*.parquet", "dataset", "refs/convert/parquet")]
    rows[1] = {"question": "2 + 2?", "answer": ""}
    with pytest.raises(ValueError, match=r"hub:openai/gsm8k:main:train, row 1: 'answer' is empty"):
        load_examples("hub:openai/gsm8k:main:train")
    for wrong in ("hub:openai/gsm8k", "hub:openai/gsm8k::train"):
        with pytest.raises(ValueError, match="hub:OWNER/NAME:CONFIG:SPLIT"):
            load_examples(wrong)


def test_a_misspelt_flag_is_one_line_with_the_right_one(capsys):
    """Bug guarded: a page of usage with the error somewhere below it."""
    for parse in (parse_config, evaluate.parse_arguments):
        with pytest.raises(SystemExit) as ended:
            parse(["--modle", "m"])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert said.startswith("error: unrecognized arguments: --modle m (do you mean --model?)")
        assert said.count("\n") == 1


def test_the_progress_bar_fits_into_100_columns():
    """Bug guarded: a bar that a terminal cuts, or breaks into a new line at every step."""
    bar = tqdm(range(5000), initial=4999, total=5000, bar_format=train.BAR_FORMAT, file=io.StringIO())
    numbers = {"reward": -1.234, "pasr/refined_accuracy": 0.5, "pasr/plain_accuracy": 0.5, "pasr/refine_frac": 1.0}
    train.show_progress(bar, numbers | {"perf/rollout_tokens_per_s": 12345.6})
    assert "12346 tok/s" in str(bar)
    assert len(str(bar)) <= 100


def test_torch_is_set_up_before_a_run_computes(monkeypatch):
    """Bug guarded: products in TF32 because an image says so, partial sums rounded to bfloat16, fragments of segments."""
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    products = torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("high")
    products.allow_bf16_reduced_precision_reduction = True
    with process_group("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not products.allow_bf16_reduced_precision_reduction
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    with process_group("cpu"):
        assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64", "who sets it knows better"


def test_gpus_wait_less_than_rollouts(monkeypatch):
    """Bug guarded: a hung kernel that holds all GPUs for the two hours that a rollout may take; a rollout cut off after 15
    minutes."""
    if dist.is_initialized():  # a group of one, which an earlier test of offloading made
        dist.destroy_process_group()
    # a second gloo stands in for NCCL
    create = dist.ProcessGroupGloo
    dist.Backend.register_backend("nccl_stand_in", lambda *args: create(*args), devices=["cuda"])
    monkeypatch.setitem(BACKENDS, "cuda", "cpu:gloo,cuda:nccl_stand_in")
    monkeypatch.setattr(rl.run.processes, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 1)]))
    monkeypatch.setattr(rl.run.processes, "pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group("cuda"):
        minutes = [dist.group.WORLD._get_backend(torch.device(d)).options._timeout for d in ("cpu", "cuda")]
    assert minutes == [timedelta(minutes=120), timedelta(minutes=15)]
