"""Ask a model, or run benchmarks on it: ten benchmarks, the paper's methods, one table.

python evaluate.py --model runs/NAME --ask "274/39"       one question, to a run's newest checkpoint
python evaluate.py --model runs/NAME                      questions at a prompt, until an empty line
python evaluate.py --model Qwen/Qwen2.5-7B-Instruct --benchmarks all --methods vanilla,self-refine,pasr-prompt --out evals/base
python evaluate.py --model runs/NAME --benchmarks all --methods vanilla,pasr --out evals/pasr --compare Qwen2.5-7B
python evaluate.py --diff evals/base:vanilla evals/pasr:pasr     paired differences with bootstrap intervals
python evaluate.py --table evals/base evals/pasr                 several evaluations in one table
python evaluate.py --analyse evals/pasr                          how the model refines; also of a run: --analyse runs/NAME

An evaluation that was interrupted goes on where it stopped, by the same command. Several GPUs share the questions:
torchrun --standalone --nproc-per-node 8 -- evaluate.py --model ... --benchmarks ...
"""

import json
import os
import sys
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from data.benchmarks import digest, load_benchmark, parse_benchmarks
from data.prompts import PROMPTS_FILE, PromptRenderer, check_vocabulary, load_prompts, load_tokenizer, stop_ids
from model.folder import base_folder, fingerprint, text_folder
from rewards.format import format_reward
from rl.config import Parser, add_flag, option, to_flag
from rl.distributed import broadcast_from_main, pick_device, print_once
from rl.evaluation import tables
from rl.evaluation.behaviour_report import analyse_folder, publish
from rl.evaluation.methods import Answerer, Decoding, parse_methods
from rl.evaluation.records import OutputFolder, open_next_to
from rl.evaluation.run import JUDGE_PROMPTS, BenchmarkRun
from rl.evaluation.scores import differences
from rl.files import write_whole
from rl.judging.judge import JudgeSpec, judge_identity, make_scorers
from rl.run.checkpoint import model_folder
from rl.run.console import one_line_errors
from rl.run.processes import leave, process_group, silence_other_ranks
from rl.sampler import Sampler
from rl.weights.policy import load_frozen

PATIENCE = 24 * 60.0  # minutes that a process which has answered its share waits for the others
COLOUR, PLAIN = "\033[1;33m", "\033[0m"  # of refinements on a terminal


@dataclass(frozen=True)
class EvalConfig(Decoding):
    """The command line. Field names are the flags, with dashes."""

    model: str | None = option(None, "run folder, checkpoint folder or hub id (@REVISION may follow)")
    ask: str | None = option(None, "a question; none: read questions from the terminal")
    prompts: str | None = option(None, 'JSON file with "refine" and "plain" system prompts; none: those saved with the model')
    plain_thinking: Literal["on", "off"] = option("on", "off: plain prompt rendered without native thinking (Qwen3)")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: cuda if there is one")

    benchmarks: str | None = option(None, "all, or with commas between: gsm8k, math500, ... and your own name=FILE:KIND")
    methods: str | None = option(
        None, "vanilla, self-refine, self-refine-oracle, pasr-prompt, pasr-ift, pasr, with commas between; none: vanilla and "
        "pasr, or pasr-prompt for a model that was not trained here",
    )  # fmt: skip
    max_slots: int | Literal["auto"] = option("auto", "sequences decoded at once; auto: what free memory holds")
    data_dir: str | None = option(None, "folder of files in the layout of the paper's release; none: from the hub")
    limit: int | None = option(None, "at most so many questions of each benchmark, chosen by --seed")
    judge: str = option("rules", "a judge beside the rules: self, a model's folder or hub id, http(s)://host/v1; rules: none")
    judge_model: str | None = option(None, "name of the model on the judge's server")
    judge_options: str = option("{}", "JSON: concurrency, timeout, extra_body of the judge's server")
    out: str | None = option(None, "folder of records and tables; none: runs/evaluations/NAME, NAME-2, ...")
    compare: str | None = option(None, "paper or MODEL: the paper's figures below ours, of this model or of the named one")

    table: tuple[str, ...] | None = option(None, "one table of these evaluations")
    diff: tuple[str, ...] | None = option(None, "B - A, each DIR or DIR:METHOD")
    analyse: str | None = option(None, "how answers of an evaluation, or of a run's last rollouts, refine; with --judge more")
    plain_from: str | None = option(None, "with --analyse: folder of another evaluation, the base model's, for plain answers")
    last_steps: int = option(10, "with --analyse: newest steps of a run's rollouts; 0: all")


GROUPS = {  # the first flag of each group in the help
    "model": "a model", "temperature": "how answers are drawn", "benchmarks": "benchmarks", "table": "finished evaluations",
}  # fmt: skip
LISTS = {"table": ("+", "DIR"), "diff": (2, ("A", "B"))}  # flags with several values: how many, and their names in the help


def parse_arguments(argv: list[str] | None) -> EvalConfig:
    """Make the configuration of a command line.

    Raises:
        SystemExit: unknown flag or unreadable value (exit code 2), or --help.
    """
    description = "Ask a model with both prompts, or run benchmarks on it."
    parser = Parser("evaluate.py", description)
    group, groups = parser, {first: parser.add_argument_group(title) for first, title in GROUPS.items()}
    for spec in fields(EvalConfig):
        group = groups.get(spec.name, group)
        if spec.name in LISTS:
            count, names = LISTS[spec.name]
            group.add_argument(to_flag(spec.name), nargs=count, metavar=names, help=spec.metadata["help"])
        else:
            add_flag(group, spec, {})
    return EvalConfig(**vars(parser.parse_args(argv)))


def check(config: EvalConfig) -> None:
    """Refuse values that cannot work, with what to do instead.

    Raises:
        ValueError: the first problem found.
    """
    if not (config.model or config.diff or config.table or config.analyse):
        raise ValueError("--model is missing: which model is to be asked?")
    for name, least in {"samples": 1, "max_new_tokens": 1, "max_slots": 1, "last_steps": 0, "limit": 1}.items():
        if getattr(config, name) not in ("auto", None) and getattr(config, name) < least:
            raise ValueError(f"{to_flag(name)} must be at least {least}")
    if config.samples > 1 and config.temperature == 0:
        raise ValueError("--samples above 1 needs --temperature above 0: greedy answers are all the same")
    if config.paper_decoding and config.temperature:
        raise ValueError("--paper-decoding sets the temperatures itself; leave --temperature at 0")
    if not config.benchmarks and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("only --benchmarks can be shared by several processes: start this without torchrun")
    JudgeSpec.of(config, Path())


def main(argv: list[str] | None = None) -> int:
    """Show what finished evaluations hold, or load a model and put benchmarks or questions to it."""
    with silence_other_ranks(), one_line_errors():
        config = parse_arguments(argv)
        check(config)
        for value, show in ((config.diff, show_differences), (config.table, show_tables), (config.analyse, show_analysis)):
            if value:
                show(config)
                return 0
    with process_group(config.device, PATIENCE), one_line_errors():
        folder, answerer = load(config)
        if config.benchmarks:
            run_benchmarks(config, folder, answerer)
        elif config.ask is not None:
            show_answers(answerer, config.ask)
        else:
            read_questions(answerer)
    return 0


def load(config: EvalConfig) -> tuple[Path, Answerer]:
    """Load the model of a run folder (its newest checkpoint), a checkpoint folder or a hub id, and return its folder as well.

    Raises:
        ValueError: something the user has to change.
    """
    folder = model_folder(config.model)
    tokenizer = load_tokenizer(text_folder(folder))
    prompts, thinking = load_prompts(config.prompts, folder), config.plain_thinking == "on"
    stops = stop_ids(base_folder(folder), tokenizer)
    model = load_frozen(folder, pick_device(config.device))
    check_vocabulary(tokenizer, model.config.vocab_size)
    slots = config.max_slots if config.benchmarks else config.samples
    sampler = Sampler(model, stop_ids=stops, max_slots=slots, max_len=model.config.max_position_embeddings)
    return folder, Answerer(PromptRenderer(tokenizer, prompts, plain_thinking=thinking), sampler, config)


def show_answers(answerer: Answerer, question: str) -> None:
    """Print the refined and the plain answer, with refinements coloured on a terminal.

    Raises:
        ValueError: the model cannot read the question.
    """
    for mode in ("refine", "plain"):
        for turn in answerer.ask(question, mode):
            text, notes = turn["response"], [f"{turn['tokens']} tokens"]
            notes += ["cut off at --max-new-tokens"] if turn["finish_reason"] == "length" else []
            notes += ["not well formed"] if mode == "refine" and format_reward(text) < 0 else []
            if sys.stdout.isatty():
                text = text.replace("<refine>", f"{COLOUR}<refine>").replace("</refine>", f"</refine>{PLAIN}") + PLAIN
            print(f"{mode + ' prompt':15s}{text}   ({', '.join(notes)})")


def read_questions(answerer: Answerer) -> None:
    """Answer the questions that are typed, until an empty line."""
    print("a question, or an empty line to leave")
    with suppress(EOFError):
        while question := input("> ").strip():
            try:
                show_answers(answerer, question)
            except ValueError as error:  # this question cannot be read; the next one may be fine
                print(f"error: {error}")


def run_benchmarks(config: EvalConfig, model: Path, answerer: Answerer) -> None:
    """Answer every benchmark by every method, score the answers, and write records and tables."""
    # questions and methods
    benchmarks = parse_benchmarks(config.benchmarks)
    is_trained_here = (model / PROMPTS_FILE).is_file()  # because training saves the prompts with the model
    methods = parse_methods(config.methods or f"vanilla,{'pasr' if is_trained_here else 'pasr-prompt'}")
    trained = {"pasr", "pasr-ift"} & {method.name for method in methods}
    if trained and not is_trained_here:
        print(f"note: {config.model} holds no prompts of a training run; is it trained? Its row is called {', '.join(trained)}")
    compare = tables.paper_model(config.compare, [config.model]) if config.compare else None
    judge = JudgeSpec.of(config, Path())
    items = {b.name: load_benchmark(b, config.data_dir, limit=config.limit, seed=config.seed) for b in benchmarks}

    with ExitStack() as stack:
        # the output folder, which must hold the same settings or be new
        def open_folder() -> Path:
            settings = answer_settings(config, model, answerer, judge) | {
                "benchmarks": {benchmark.name: benchmark.kind for benchmark in benchmarks},
                "data": {name: digest(rows) for name, rows in items.items()},
            }
            default = Path("runs") / "evaluations" / Path(config.model).name
            out = OutputFolder(Path(config.out), settings) if config.out else open_next_to(default, settings)
            return stack.enter_context(closing(out)).path

        folder = broadcast_from_main(open_folder)
        # the judge, if there is one beside the rules
        judges = {}
        if judge.name != "rules":
            own = answerer.sampler.model, answerer.renderer.tokenizer
            judges = make_scorers(replace(judge, folder=folder), JUDGE_PROMPTS, own, tried="open")
        for scorer in judges.values():
            stack.enter_context(closing(scorer))
        # answers and scores, then the table
        for benchmark in benchmarks:
            for method in methods:
                BenchmarkRun(answerer, benchmark, items[benchmark.name], method, folder).run(judges)
        broadcast_from_main(lambda: show_result(folder, compare))


def answer_settings(config: EvalConfig, model: Path, answerer: Answerer, judge: JudgeSpec) -> dict:
    """Return everything that an answer or its score depends on, besides the questions."""
    return {
        "model": config.model,
        "fingerprint": fingerprint(model),
        "prompts": {mode: answerer.renderer.text("", mode) for mode in ("refine", "plain")},
        **{name: getattr(config, name) for name in (*(spec.name for spec in fields(Decoding)), "limit")},
        "judge": None if judge.name == "rules" else judge_identity(judge, model, JUDGE_PROMPTS.values()),
    }


def show_result(folder: Path, compare: str | None) -> None:
    """Write the tables of an evaluation, and print the one for readers."""
    print(f"\n{tables.save(tables.build([folder], compare), folder)}")
    print(f"written to {folder}: records/, table.md, table.csv, table.json")


def show_differences(config: EvalConfig) -> None:
    """Print the differences of two evaluations, and write them to --out."""
    found = differences(*config.diff)
    print(tables.difference_table(found))
    if config.out:
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_whole(Path(config.out) / "diff.json", json.dumps(found, indent=2) + "\n")


def show_tables(config: EvalConfig) -> None:
    """Print one table of several evaluations, and write it to --out."""
    table = tables.build([Path(folder) for folder in config.table], config.compare)
    print(tables.save(table, Path(config.out)) if config.out else tables.markdown(table))


def show_analysis(config: EvalConfig) -> None:
    """Print the behaviour analyses of a folder, and write them into it."""
    folder = Path(config.analyse)
    methods = {method.mode: method.name for method in reversed(parse_methods(config.methods))} if config.methods else {}
    plain_from = Path(config.plain_from) if config.plain_from else None
    names = {"plain": methods.get("plain"), "refined": methods.get("refine"), "plain_from": plain_from}
    analysis = analyse_folder(folder, JudgeSpec.of(config, folder), **names, last_steps=config.last_steps)
    publish(analysis, folder)


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
        leave(code)
    except KeyboardInterrupt:
        print_once("\ninterrupted; of benchmarks, what has been answered is kept: the same command goes on")
        leave(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        leave(141)  # as a shell reports SIGPIPE
