"""Ask a model, or run benchmarks on it: ten benchmarks, the paper's methods, one table.

python evaluate.py --model runs/NAME --ask "274/39"       one question, to a run's newest checkpoint
python evaluate.py --model runs/NAME                      questions at a prompt, until an empty line
python evaluate.py --model Qwen/Qwen2.5-7B-Instruct --benchmarks all --methods vanilla,self-refine,pasr-prompt --out evals/base
python evaluate.py --model runs/NAME --benchmarks all --methods vanilla,pasr --out evals/pasr --compare Qwen2.5-7B
python evaluate.py --diff evals/base:vanilla evals/pasr:pasr     paired differences with bootstrap intervals
python evaluate.py --table evals/base evals/pasr                 several evaluations in one table
python evaluate.py --analyse evals/pasr                          how the model refines; also of a run: --analyse runs/NAME

An evaluation that was interrupted goes on where it stopped, by the same command.
"""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

from data.benchmarks import digest, load_benchmark, parse_benchmarks
from model.checkpoint import fingerprint
from rewards.format import format_reward
from rl.behaviour.analyse import publish, run_analysis
from rl.config import Config
from rl.config_checks import check_judge
from rl.distributed import pick_device
from rl.evaluation import differences, tables
from rl.evaluation.answer_records import OutputFolder, open_next_to
from rl.evaluation.judges import ASKED
from rl.evaluation.loading import LoadedModel, load_for_asking
from rl.evaluation.methods import Answerer, Decoding, parse_methods
from rl.evaluation.paper_figures import paper_model
from rl.evaluation.run import run_benchmark
from rl.judges import judge_identity, make_scorers
from rl.records import Completion, Request
from rl.run_folder import write_whole
from rl.sampler import Sampler
from rl.terminal import Parser
from rl.user_errors import one_line_errors

COLOUR, PLAIN = "\033[1;33m", "\033[0m"


def slots(text: str) -> int | str:
    return text if text == "auto" else int(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="evaluate.py", description="Ask a model with both prompts, or run benchmarks on it.", allow_abbrev=False
    )
    parser.add_argument("--model", help="run folder, checkpoint folder or hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
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
    group.add_argument("--judge-extra-body", help="JSON merged into each request to the judge's server")
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
    check_judge(judge_config(given, Path()))


class Asker:
    """One loaded model that answers questions with either prompt."""

    def __init__(self, arguments: argparse.Namespace, loaded: LoadedModel) -> None:
        self.arguments, self.renderer, self.loaded = arguments, loaded.renderer, loaded

    def answer(self, question: str, mode: str) -> Completion:
        given = self.arguments
        ids, context = self.renderer.ids(question, mode), self.loaded.model.config.max_position_embeddings
        if len(ids) >= context:
            raise ValueError(f"the question takes {len(ids):,} tokens, this model reads at most {context:,}: shorten it")
        sampler = Sampler(self.loaded.model, stop_ids=self.loaded.stop_ids, max_slots=1, max_len=context)
        room, key = min(given.max_new_tokens, context - len(ids)), (given.seed, "ask", question, mode)
        return sampler.generate([Request(ids, 1, room, given.temperature, key, given.top_p)])[0][0]

    def show(self, question: str) -> None:
        """Print the refined and the plain answer."""
        for mode in ("refine", "plain"):
            completion = self.answer(question, mode)
            text = self.renderer.decode(completion.text_ids)
            notes = [f"{len(completion.ids)} tokens"]
            if completion.finish_reason == "length":
                notes.append("cut off at --max-new-tokens")
            if mode == "refine" and format_reward(text) < 0:
                notes.append("not well formed")
            print(f"{mode + ' prompt':15s}{mark_refinements(text, sys.stdout.isatty())}   ({', '.join(notes)})")


def mark_refinements(text: str, colours: bool) -> str:
    """The text with its refinements coloured, on a terminal."""
    if not colours:
        return text
    return text.replace("<refine>", f"{COLOUR}<refine>").replace("</refine>", f"</refine>{PLAIN}") + PLAIN


def run_benchmarks(given: argparse.Namespace, loaded: LoadedModel) -> None:
    """Answer, score, and write records and tables."""
    benchmarks = parse_benchmarks(given.benchmarks)
    methods = parse_methods(given.methods or f"vanilla,{'pasr' if loaded.is_trained_here else 'pasr-prompt'}")
    trained = {"pasr", "pasr-ift"} & {method.name for method in methods}
    if trained and not loaded.is_trained_here:
        print(f"note: {given.model} holds no prompts of a training run; is it trained? Its row is called {', '.join(trained)}")
    compare = paper_model(given.compare, given.model) if given.compare else None
    items = {b.name: load_benchmark(b, given.data_dir, limit=given.limit, seed=given.seed) for b in benchmarks}
    judge = judge_config(given, Path())
    decoding = Decoding(
        given.temperature, given.top_p, given.samples, given.max_new_tokens, given.seed, given.max_slots, given.paper_decoding
    )
    settings = {
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
        "judge": None if judge.judge == "rules" else judge_identity(judge, loaded.folder, ASKED.values()),
        "benchmarks": {benchmark.name: benchmark.kind for benchmark in benchmarks},
        "data": {name: digest(rows) for name, rows in items.items()},
    }
    place = Path("runs") / "evaluations" / Path(given.model).name
    with closing(OutputFolder(Path(given.out), settings) if given.out else open_next_to(place, settings)) as out:
        judge, own = judge_config(given, out.path), (loaded.model, loaded.tokenizer)
        judges = {}
        if judge.judge != "rules":  # whose scores there are anyway
            judges = make_scorers(judge, ASKED, own, pick_device(given.device), tried="open")
        context = loaded.model.config.max_position_embeddings
        answerer = Answerer(loaded.model, loaded.renderer, loaded.stop_ids, context, decoding)
        for benchmark in benchmarks:
            for method in methods:
                run_benchmark(answerer, benchmark, items[benchmark.name], method, out, judges)
        for scorer in judges.values():
            scorer.close()
        table = tables.build([out.path], compare)
        tables.save(table, out.path)
    print(f"\n{tables.terminal(table)}\n\nwritten to {out.path}: records/, table.md, table.csv, table.json")


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
        folder, judge_config(given, folder), plain=methods.get("plain"), refined=methods.get("refine"),
        plain_from=Path(given.plain_from) if given.plain_from else None, last_steps=given.last_steps,
    )  # fmt: skip
    publish(analysis, folder)


def judge_config(given: argparse.Namespace, folder: Path) -> Config:
    """What makes the judge; its cache of scores is kept in `folder`."""
    flags = {name: getattr(given, name) for name in ("judge", "judge_model", "judge_extra_body", "device")}
    return Config(**flags, runs_dir=str(folder))


def show_tables(given: argparse.Namespace) -> None:
    folders = [Path(folder) for folder in given.table]
    compare = paper_model(given.compare, given.model or "") if given.compare else None
    table = tables.build(folders, compare)
    print(tables.terminal(table))
    if given.out:
        Path(given.out).mkdir(parents=True, exist_ok=True)
        tables.save(table, Path(given.out))


def read_questions(asker: Asker) -> None:
    """Answer what is typed, until an empty line."""
    print("a question, or an empty line to leave")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        try:
            asker.show(question)
        except ValueError as error:  # a question this model cannot read; the next one may be fine
            print(f"error: {error}")


def main(argv: list[str] | None = None) -> int:
    given = parse_arguments(argv)
    with one_line_errors():
        check(given)
        if given.diff:
            show_differences(given)
            return 0
        if given.table:
            show_tables(given)
            return 0
        if given.analyse:
            show_analysis(given)
            return 0
        loaded = load_for_asking(
            given.model, revision=given.revision, prompts=given.prompts, device=given.device,
            plain_thinking=given.plain_thinking == "on",
        )  # fmt: skip
        if given.benchmarks:
            run_benchmarks(given, loaded)
            return 0
        asker = Asker(given, loaded)
        if given.ask is not None:
            asker.show(given.ask)
            return 0
    read_questions(asker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
