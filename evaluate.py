"""Ask a model, or run benchmarks on it: ten benchmarks, the paper's methods, one table.

python evaluate.py --model runs/NAME --ask "274/39"       one question, to a run's newest checkpoint
python evaluate.py --model runs/NAME                      questions at a prompt, until an empty line
python evaluate.py --model Qwen/Qwen2.5-7B-Instruct --benchmarks all --methods vanilla,self-refine,pasr-prompt --out evals/base
python evaluate.py --model runs/NAME --benchmarks all --methods vanilla,pasr --out evals/pasr --compare Qwen2.5-7B
python evaluate.py --diff evals/base:vanilla evals/pasr:pasr     paired differences with bootstrap intervals
python evaluate.py --table evals/base evals/pasr                 several evaluations in one table
python evaluate.py --analyse evals/pasr                          how the model refines; also of a run: --analyse runs/NAME

An evaluation that was interrupted goes on where it stopped, by the same command. Several GPUs share the questions out:
torchrun --standalone --nproc-per-node 8 -- evaluate.py --model ... --benchmarks ...
"""

import argparse
import json
import os
from contextlib import ExitStack, closing
from pathlib import Path

from data.benchmark_rows import BenchmarkItem
from data.benchmarks import Benchmark, digest, load_benchmark, parse_benchmarks
from model.checkpoint import fingerprint
from rl.config import Parser
from rl.distributed import broadcast_from_main, pick_device, print_once
from rl.evaluation import differences, tables
from rl.evaluation.asking import Asker, LoadedModel, load_for_asking, read_questions
from rl.evaluation.behaviour_report import publish, run_analysis
from rl.evaluation.methods import Answerer, Decoding, parse_methods
from rl.evaluation.paper_figures import paper_model
from rl.evaluation.records import OutputFolder, open_next_to
from rl.evaluation.run import ASKED, run_benchmark
from rl.files import write_whole
from rl.judging.judge import JudgeSpec, judge_identity, make_scorers
from rl.run.console import one_line_errors
from rl.run.processes import leave, process_group, silence_other_ranks

PATIENCE = 24 * 60.0  # minutes a process that has answered its share waits for the others


def slots(text: str) -> int | str:
    return text if text == "auto" else int(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="evaluate.py", description="Ask a model with both prompts, or run benchmarks on it.", allow_abbrev=False
    )
    parser.add_argument("--model", help="run folder, checkpoint folder or hub id (@REVISION may follow)")
    parser.add_argument("--ask", metavar="QUESTION", help="a question; none: read questions from the terminal")
    parser.add_argument("--prompts", help="JSON file that replaces the system prompts; default: those saved with the model")
    parser.add_argument("--plain-thinking", choices=("on", "off"), default="on", help="off: no native thinking (Qwen3)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: off)")
    parser.add_argument("--max-new-tokens", type=int, default=1500, help="longest answer (default: 1500, as in the paper)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling, and of the draw of --limit")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    group = parser.add_argument_group("benchmarks")
    group.add_argument("--benchmarks", help="all, or names and name=FILE:KIND with commas between (see data/benchmarks.py)")
    group.add_argument("--methods", help="vanilla, self-refine, self-refine-oracle, pasr-prompt, pasr-ift, pasr, with commas "
                       "between; default: vanilla and pasr, or pasr-prompt for a model that was not trained here")  # fmt: skip
    group.add_argument("--data-dir", metavar="FOLDER", help="files in the layout of the paper's release; none: from the hub")
    group.add_argument("--limit", type=int, help="at most so many questions of each benchmark, drawn by --seed")
    group.add_argument("--samples", type=int, default=1, help="answers to each question: mean@k, pass@k, maj@k (default: 1)")
    group.add_argument("--paper-decoding", action="store_true", help="second turns at T = 0.9, of the oracle at 0.6")
    group.add_argument("--judge", default="rules", help="scores beside the rules: self, a model folder, http(s)://host/v1")
    group.add_argument("--judge-model", help="name of the model on the judge's server")
    group.add_argument("--judge-options", default="{}", help="JSON: concurrency, timeout, extra_body of the judge's server")
    group.add_argument("--max-slots", type=slots, default="auto", help="sequences decoded at once (default: auto, what fits)")
    group.add_argument("--out", metavar="DIR", help="records and tables go here; default: runs/evaluations/NAME, NAME-2, ...")
    group.add_argument(
        "--compare", metavar="paper|MODEL", help="the paper's figures below ours: of this model, or of the named"
    )
    group.add_argument("--table", nargs="+", metavar="DIR", help="one table of these evaluations; runs nothing")
    group.add_argument("--diff", nargs=2, metavar=("A", "B"), help="B - A, each DIR or DIR:METHOD; runs nothing")
    group.add_argument(
        "--analyse",
        metavar="DIR",
        help="how the answers of an evaluation, or of a run's last rollouts, refine; with --judge more",
    )
    group.add_argument(
        "--plain-from", metavar="DIR", help="with --analyse: plain answers of another evaluation, the base model's"
    )
    group.add_argument("--last-steps", type=int, default=10, help="with --analyse: of a run's rollouts; 0: all (default: 10)")
    return parser.parse_args(argv)


def check(given: argparse.Namespace) -> None:
    """Refuse what cannot work.

    Raises:
        ValueError: the first problem found.
    """
    if not (given.model or given.diff or given.table or given.analyse):
        raise ValueError("--model is missing: which model is to be asked?")
    for name in ("samples", "max_new_tokens", "max_slots"):
        if getattr(given, name) != "auto" and getattr(given, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if given.last_steps < 0:
        raise ValueError("--last-steps must be at least 0")
    if given.limit is not None and given.limit < 1:
        raise ValueError("--limit must be at least 1")
    if given.samples > 1 and given.temperature == 0:
        raise ValueError("--samples above 1 needs --temperature above 0: greedy answers are all the same")
    if given.paper_decoding and given.temperature:
        raise ValueError("--paper-decoding sets the temperatures itself; leave --temperature at 0")
    if not given.benchmarks and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("only --benchmarks can be shared by several processes: start this without torchrun")
    JudgeSpec.of(given, Path())


def run_benchmarks(given: argparse.Namespace, loaded: LoadedModel) -> None:
    """Answer, score, and write records and tables."""
    benchmarks = parse_benchmarks(given.benchmarks)
    methods = parse_methods(given.methods or f"vanilla,{'pasr' if loaded.is_trained_here else 'pasr-prompt'}")
    trained = {"pasr", "pasr-ift"} & {method.name for method in methods}
    if trained and not loaded.is_trained_here:
        print(f"note: {given.model} holds no prompts of a training run; is it trained? Its row is called {', '.join(trained)}")
    compare = paper_model(given.compare, given.model) if given.compare else None
    items = {b.name: load_benchmark(b, given.data_dir, limit=given.limit, seed=given.seed) for b in benchmarks}
    decoding = Decoding(
        given.temperature, given.top_p, given.samples, given.max_new_tokens, given.seed, given.max_slots, given.paper_decoding
    )
    answerer = Answerer(loaded.model, loaded.renderer, loaded.stop_ids, loaded.model.config.max_position_embeddings, decoding)
    with ExitStack() as held:

        def claim() -> Path:
            settings = answer_settings(given, loaded, benchmarks, items)
            place = Path("runs") / "evaluations" / Path(given.model).name
            out = OutputFolder(Path(given.out), settings) if given.out else open_next_to(place, settings)
            return held.enter_context(closing(out)).path

        folder = broadcast_from_main(claim)
        judge, judges = JudgeSpec.of(given, folder), {}
        if judge.name != "rules":  # whose scores there are anyway
            own = (loaded.model, loaded.tokenizer)
            judges = make_scorers(judge, ASKED, own, tried="open")
        for scorer in judges.values():
            held.enter_context(closing(scorer))
        for benchmark in benchmarks:
            for method in methods:
                run_benchmark(answerer, benchmark, items[benchmark.name], method, folder, judges)
        broadcast_from_main(lambda: show_result(folder, compare))


def answer_settings(
    given: argparse.Namespace, loaded: LoadedModel, benchmarks: list[Benchmark], items: dict[str, list[BenchmarkItem]]
) -> dict:
    """Everything that an answer or its score depends on."""
    judge = JudgeSpec.of(given, Path())
    return {
        "model": given.model,
        "fingerprint": fingerprint(loaded.folder),
        "prompts": {mode: loaded.renderer.text("", mode) for mode in ("refine", "plain")},
        "temperature": given.temperature,
        "top_p": given.top_p,
        "samples": given.samples,
        "max_new_tokens": given.max_new_tokens,
        "seed": given.seed,
        "limit": given.limit,
        "paper_decoding": given.paper_decoding,
        "judge": None if judge.name == "rules" else judge_identity(judge, loaded.folder, ASKED.values()),
        "benchmarks": {benchmark.name: benchmark.kind for benchmark in benchmarks},
        "data": {name: digest(rows) for name, rows in items.items()},
    }


def show_result(folder: Path, compare: str | None) -> None:
    table = tables.build([folder], compare)
    tables.save(table, folder)
    print(f"\n{tables.terminal(table)}\n\nwritten to {folder}: records/, table.md, table.csv, table.json")


def show_differences(given: argparse.Namespace) -> None:
    found = differences.differences(*given.diff)
    print(differences.render(found, *given.diff))
    if differences.mixed_rules(*given.diff):
        print("note: not all were scored by the same rules; the command that made an evaluation also scores its answers anew")
    if given.out:
        Path(given.out).mkdir(parents=True, exist_ok=True)
        write_whole(Path(given.out) / "diff.json", json.dumps(found, indent=2) + "\n")


def show_analysis(given: argparse.Namespace) -> None:
    """Print and write the behaviour analyses of a folder."""
    folder = Path(given.analyse)
    methods = {method.mode: method.name for method in reversed(parse_methods(given.methods))} if given.methods else {}
    analysis = run_analysis(
        folder, JudgeSpec.of(given, folder), plain=methods.get("plain"), refined=methods.get("refine"),
        plain_from=Path(given.plain_from) if given.plain_from else None, last_steps=given.last_steps,
    )  # fmt: skip
    publish(analysis, folder)


def show_tables(given: argparse.Namespace) -> None:
    folders = [Path(folder) for folder in given.table]
    compare = paper_model(given.compare, given.model or "") if given.compare else None
    table = tables.build(folders, compare)
    print(tables.terminal(table))
    if given.out:
        Path(given.out).mkdir(parents=True, exist_ok=True)
        tables.save(table, Path(given.out))


def main(argv: list[str] | None = None) -> int:
    with silence_other_ranks(), one_line_errors():
        given = parse_arguments(argv)
        check(given)
        for wanted, show in ((given.diff, show_differences), (given.table, show_tables), (given.analyse, show_analysis)):
            if wanted:
                show(given)
                return 0
        pick_device(given.device)  # a GPU that is not there is a mistake to be told in one line
    with process_group(given.device, PATIENCE):
        return ask(given)


def ask(given: argparse.Namespace) -> int:
    """Load the model, and put benchmarks, one question, or what is typed to it."""
    with one_line_errors():
        loaded = load_for_asking(
            given.model, prompts=given.prompts, device=given.device,
            plain_thinking=given.plain_thinking == "on",
        )  # fmt: skip
        if given.benchmarks:
            run_benchmarks(given, loaded)
            return 0
        asker = Asker(loaded, given.max_new_tokens, given.temperature, given.top_p, given.seed)
        if given.ask is not None:
            asker.show(given.ask)
            return 0
    read_questions(asker)
    return 0


if __name__ == "__main__":
    try:
        leave(main())
    except KeyboardInterrupt:
        print_once("\ninterrupted; of benchmarks, what has been answered is kept: the same command goes on")
        leave(130)
