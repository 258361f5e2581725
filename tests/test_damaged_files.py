"""Files that are damaged, foreign or of another encoding: one line that names them and says what to do, and no traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import flags, lines_of, write_questions, write_task_folder
from safetensors.torch import load_file, save_file

import evaluate
import train
from data.examples import load_examples
from data.prompts import PromptRenderer, Prompts, load_prompts, load_tokenizer, stop_ids
from model import load_model
from rl import sft
from rl.report.__main__ import main as report


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A model, questions and a run of two steps."""
    path = tmp_path_factory.mktemp("made")
    write_task_folder(path / "model")
    write_questions(path / "data.jsonl", 4)
    assert train.main(flags(path, "run", "--steps", "2")) == 0
    return path


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "model", tmp_path / "model"))


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A copy of everything, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def said_on_failure(capsys, command, arguments: list[str]) -> str:
    """Return the output of a command that must end with exit code 2 and one line."""
    try:
        code = command(arguments)
    except SystemExit as stop:
        code = stop.code
    said = "".join(capsys.readouterr())
    assert code == 2, said
    assert sum(line.startswith("error:") for line in said.splitlines()) == 1, said
    return said


ROW = '{"question": "1/2", "answer": "0"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{ROW}\n".encode() + '{"question": "é"}'.encode("latin-1"), r"data\.jsonl is not UTF-8 text \(byte \d+\)"),
        (ROW.encode("utf-16"), r"data\.jsonl is not UTF-8"),
        (f"{ROW}\n\0\0\0\n".encode(), "line 2: not valid JSON"),
        (b'{"question": "\\ud83d", "answer": "1"}', "line 1: holds half of a surrogate pair"),
        (b'[{"question": "1", "answer": "\\udc00"}]', "data.jsonl: holds half of a surrogate pair"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (ROW.encode() + b"\n" + b'{"a":' * 100_000, "line 2: cannot be read as JSON"),
        (b'{"question": "1", "answer": ' + b"9" * 5000 + b"}", "line 1: cannot be read as JSON"),
        (f"[{ROW},\n{ROW}\n{ROW}]".encode(), "line 3: not valid JSON"),
    ],
)
def test_data_that_is_no_text_is_named(tmp_path, content, message):
    """Bug guarded: a message about a codec that names no file, a recursion error, a text that crashes the tokenizer later."""
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_examples(tmp_path / "data.jsonl")


def test_text_of_any_script_is_data(tmp_path):
    """Bug guarded: a byte order mark, an escaped emoji or a control character that makes a file unreadable."""
    questions = ["😀", "שלום \u202e", "a\0b\x1b", "\u2028", "12/3 " * 200_000]
    rows = "".join(
        json.dumps({"question": f"q{question}q", "answer": "1"}, ensure_ascii=bool(index % 2)) + "\n"
        for index, question in enumerate(questions)
    )
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "data.jsonl").write_bytes(mark + rows.encode())
        assert [e.question for e in load_examples(tmp_path / "data.jsonl")] == [f"q{q}q" for q in questions]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number of at least 1, it is 0"),
        ({"num_key_value_heads": -2}, "num_key_value_heads must be"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be"),
        ({"head_dim": -2}, "head_dim must be"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number above 0"),
        ({"rope_theta": "x"}, "rope_theta must be a number above 0"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"layer_types": 5}, "layer_types must be a list"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ],
)
def test_malformed_fields_of_a_configuration_are_named(folder, changes, message):
    """Bug guarded: a division by zero or a negative dimension, deep within torch."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_absent_and_null_fields_get_the_families_defaults(folder):
    config = json.loads((folder / "config.json").read_text())
    for name in ("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):
        config[name] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).config.max_position_embeddings == 32_768


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_floating_point_are_refused(folder, dtype):
    """Bug guarded: quantised or complex weights that are cast without a word, and are noise."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="load the unquantised checkpoint"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b'{"added_'),
        ("tokenizer_config.json", b"[]"),
        ("config.json", b'{"model_type": "qwen3", "hidden_size": "64"}'),
        ("generation_config.json", b"[1]"),
        ("generation_config.json", b"{"),
        ("chat_template.jinja", b"{% for %}"),
        ("chat_template.jinja", b"{{ raise_exception('no system role') }}"),
        ("prompts.json", b"\xff"),
        *(("model.safetensors.index.json", index) for index in (b"{}", b'{"weight_map": ["a"]}', b'{"weight_map": {"a": 5}}')),
    ],
)
def test_damage_around_the_weights_is_named(folder, file, content):
    """Bug guarded: KeyError: 'added_tokens' or 'weight_map', a template's exception, a message about a codec."""
    (folder / file).write_bytes(content)

    def load() -> None:
        tokenizer = load_tokenizer(folder)
        PromptRenderer(tokenizer, load_prompts(None, folder)).ids("1/2", "refine")
        stop_ids(folder, tokenizer)
        load_model(folder)

    with pytest.raises(ValueError, match=rf"{folder}|chat template"):
        load()


def test_half_a_surrogate_pair_from_the_command_line(folder, capsys):
    """Bug guarded: the tokenizer's TypeError for bytes that a terminal sends in another encoding."""
    assert "no valid Unicode" in said_on_failure(capsys, evaluate.main, ["--model", str(folder), "--ask", "1\udcff"])
    with pytest.raises(ValueError, match="no valid Unicode"):
        PromptRenderer(load_tokenizer(folder), Prompts()).ids("\ud800", "plain")


def test_a_question_beyond_the_models_context_is_refused(folder, capsys):
    """Bug guarded: a pasted file of a megabyte, and a prefill that takes all memory."""
    said = said_on_failure(capsys, evaluate.main, ["--model", str(folder), "--ask", "12/3" * 10_000])
    assert "this model reads at most 32,768: shorten it" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", '{"ste', "summary.json is not valid JSON"),
        ("summary.json", "[]", "summary.json must hold a JSON object"),
        ("summary.json", "{}", "summary.json is damaged; remove it"),
        ("config.json", '{"con', "config.json is not valid JSON"),
        ("config.json", '{"config": 5}', "--resume-with-changes"),
    ],
)
def test_a_damaged_run_is_not_continued_blindly(made, place, capsys, name, content, message):
    """Bug guarded: KeyError: 'steps'; and a report that fails on what it could go without."""
    (place / "runs/run" / name).write_text(content)
    weights = (place / "runs/run/checkpoints/step_000002/model.safetensors").read_bytes()
    arguments = flags(made, "run", "--resume", "auto", "--runs-dir", str(place / "runs"), "--steps", "2")
    assert message in said_on_failure(capsys, train.main, arguments)
    assert (place / "runs/run/checkpoints/step_000002/model.safetensors").read_bytes() == weights
    assert report([str(place / "runs/run")]) == 0


@pytest.mark.parametrize("damage", [b"rubbish\n", b"\xff\xfe\n", b"null\n", b'{"mode": "refine"}\n', b'{"mode": "refine", "te'])
def test_damaged_rollouts_are_named_and_reported_without(place, capsys, damage):
    """Bug guarded: fine-tuning on half of a file, or a message that does not say which line of which file."""
    file = place / "runs/run/rollouts/step_000001.jsonl"
    content = file.read_bytes()
    file.write_bytes(damage + content if damage.endswith(b"\n") else content + damage)
    line = 1 if damage.endswith(b"\n") else content.count(b"\n") + 1
    run = str(place / "runs/run")
    for command, arguments in ((sft.main, ["--from-rollouts", run]), (evaluate.main, ["--analyse", run])):
        assert f"step_000001.jsonl, line {line}: not " in said_on_failure(capsys, command, arguments)
    assert not (place / "runs/run/ift").exists()
    file.write_bytes(file.read_bytes() + b'\n{"mode": "refine", "text": "an answer to nothing"}\n')
    assert report([run]) == 0


def test_foreign_files_among_the_rollouts_and_evaluations(place, capsys):
    """Bug guarded: a copy made by hand, `step_000001 (copy).jsonl`, that ends --resume and fine-tuning."""
    run = place / "runs/run"
    (run / "eval").mkdir(exist_ok=True)
    (run / "rollouts/step_000001 (copy).jsonl").write_text("")
    (run / "eval/step_000000.json").write_text('{"metrics": 5, "answers": []}')
    assert "no good refinement path" in said_on_failure(capsys, sft.main, ["--from-rollouts", str(run)])
    assert report([str(run)]) == 0
    assert train.main(flags(place, "run", "--resume", "auto", "--resume-with-changes", "--steps", "3")) == 0
    assert len(lines_of(run / "metrics.jsonl")) == 3


def test_a_damaged_evaluation_is_named(place, capsys):
    """Bug guarded: KeyError: 'benchmarks', and an evaluation killed within a character that cannot be continued."""
    out = place / "evaluation"
    again = ["--model", str(place / "model"), "--benchmarks", f"own={place / 'data.jsonl'}:number", "--methods", "vanilla"]
    again += ["--max-new-tokens", "3", "--out", str(out)]
    assert evaluate.main(again) == 0
    records = out / "records/own.vanilla.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 20] + "é".encode()[:1])
    assert evaluate.main(again) == 0
    assert records.read_bytes() == whole
    records.write_bytes(b"\xff\n" + whole)
    assert "own.vanilla.jsonl, line 1 is no record" in said_on_failure(capsys, evaluate.main, again)
    records.write_bytes(whole.replace(b'"finish_reason"', b'"finish"', 1))
    assert "own.vanilla.jsonl, line 1 is no record" in said_on_failure(capsys, evaluate.main, ["--table", str(out)])
    records.write_bytes(whole)
    (out / "records/old.notes.jsonl").write_text("what I saw\n")
    assert evaluate.main(["--table", str(out)]) == 0, "a file of a person's own is no record"
    for content in ("{}", "[]", '{"benchmarks'):
        (out / "settings.json").write_text(content)
        assert "holds no evaluation" in said_on_failure(capsys, evaluate.main, again)
        assert "holds no evaluation" in said_on_failure(capsys, evaluate.main, ["--table", str(out)])
    assert records.read_bytes() == whole
