"""Two evaluations side by side: paired differences, question by question, with bootstrap intervals."""

from pathlib import Path

from rl.evaluation.methods import METHODS
from rl.evaluation.records import AnswerRecord
from rl.evaluation.scores import LEVEL, RESAMPLES, paired_difference, question_means
from rl.evaluation.tables import SCORES, read_folder, title_of

Cells = dict[str, list[AnswerRecord]]  # by benchmark


def parse_side(text: str) -> tuple[Path, str | None]:
    """`FOLDER` or `FOLDER:METHOD`."""
    folder, mark, method = text.rpartition(":")
    return (Path(folder), method) if mark and method in METHODS else (Path(text), None)


def pair_up(a: str, b: str) -> list[tuple[str, Cells, Cells]]:
    """What is compared: a title, and the records of both sides by benchmark.

    Without methods named, every method that both have is compared with itself; if they share none and have one each, these.

    Raises:
        ValueError: a folder without evaluation, a method it lacks, nothing in common, or one id for two questions.
    """
    (folder_a, method_a), (folder_b, method_b) = parse_side(a), parse_side(b)
    one, two = _by_method(folder_a), _by_method(folder_b)
    for folder, method, found in ((folder_a, method_a, one), (folder_b, method_b, two)):
        if method is not None and method not in found:
            raise ValueError(f"{folder} has no answers of {method}; it has {', '.join(found)}")
    if method_a or method_b:
        left, right = method_a or method_b, method_b or method_a
        if left not in one or right not in two:
            raise ValueError(f"name the method of both sides, FOLDER:METHOD: {folder_a} has {', '.join(one)}, "
                             f"{folder_b} has {', '.join(two)}")  # fmt: skip
        pairs = [(left, right)]
    else:
        pairs = [(m, m) for m in one if m in two]
        if not pairs and len(one) == len(two) == 1:
            pairs = [(*one, *two)]
        if not pairs:
            raise ValueError("the two share no method; say which to compare: --diff A:METHOD B:METHOD")
    result = []
    for left, right in pairs:
        common = [name for name in one[left] if name in two[right]]
        if not common:
            raise ValueError(f"the two share no benchmark: {', '.join(one[left])} against {', '.join(two[right])}")
        _check_questions(common, one[left], two[right])
        title = METHODS[left].title if left == right else f"{METHODS[left].title} -> {METHODS[right].title}"
        result.append((title, {n: one[left][n] for n in common}, {n: two[right][n] for n in common}))
    return result


def _by_method(folder: Path) -> dict[str, Cells]:
    found: dict[str, Cells] = {}
    for (benchmark, method), records in read_folder(folder).items():
        found.setdefault(method, {})[benchmark] = records
    return found


def _check_questions(names: list[str], one: Cells, two: Cells) -> None:
    """Refuse to pair answers to different questions."""
    for name in names:
        questions = {record.id: (record.question, record.reference) for record in one[name]}
        for record in two[name]:
            if questions.get(record.id, (record.question, record.reference)) != (record.question, record.reference):
                raise ValueError(f"{record.id} is another question in the two evaluations: their data differ")


def mixed_rules(a: str, b: str) -> bool:
    """Whether what is compared was scored by more than one version of the rules."""
    records = [r for _, *sides in pair_up(a, b) for cells in sides for group in cells.values() for r in group]
    return len({record.rules for record in records if not record.unreadable}) > 1


def differences(a: str, b: str) -> list[dict]:
    """B minus A for every score and the tokens, by benchmark and over all of them. Scores as shares."""
    found = []
    for title, one, two in pair_up(a, b):
        for score in (*SCORES, "tokens"):
            columns = {name: (_values(one[name], score), _values(two[name], score)) for name in one}
            columns = {name: (x, y) for name, (x, y) in columns.items() if x and y}
            for name, pair in columns.items():
                found.append({"method": title, "score": score, "benchmark": name} | paired_difference([pair]))
            if len(columns) > 1:
                found.append(
                    {"method": title, "score": score, "benchmark": "average"} | paired_difference(list(columns.values()))
                )
    return found


def _values(records: list[AnswerRecord], score: str) -> dict[str, float]:
    """One number for each question: its mean over samples."""
    if score != "tokens":
        return question_means(records, "rule" if score == "accuracy" else score)
    tokens: dict[str, list[int]] = {}
    for record in records:
        if not record.unreadable:
            tokens.setdefault(record.id, []).append(record.tokens)
    return {id: sum(values) / len(values) for id, values in tokens.items()}


def render(found: list[dict], a: str, b: str) -> str:
    """A terminal table of at most 100 columns."""
    lines = [f"A: {a}", f"B: {b}", f"B - A on common questions, {LEVEL:.0%} interval of {RESAMPLES:,} bootstrap samples"]
    heading = None
    for entry in found:
        is_score = entry["score"] != "tokens"
        if heading != (entry["method"], entry["score"]):
            heading = (entry["method"], entry["score"])
            what = f"accuracy in points, {SCORES[entry['score']]}" if is_score else "tokens per answer"
            lines += ["", f"{entry['method']}: {what}"]
        if entry["difference"] is None:
            numbers = "no common question"
        else:
            difference, low, high = ((100 if is_score else 1) * entry[key] for key in ("difference", "low", "high"))
            clear = "  *" if low > 0 or high < 0 else ""
            numbers = f"{difference:+8.1f}  [{low:+.1f}, {high:+.1f}]{clear}"
        lines.append(f"  {title_of(entry['benchmark'])[:16]:16} {entry['questions']:6d} questions {numbers}")
    return "\n".join([*lines, "", "*: the interval does not contain 0"])
