"""How a model refines: whether, when, how, and to what end (paper, sections 3.3 and B.2). Answers in, one dictionary out.

Every share comes with its count and a 95 % Wilson interval. The interval takes the answers to be independent; several samples
of one question are not, and then it is too narrow: the number of questions stands beside it.
"""

from statistics import fmean, median

from data.examples import stable_seed
from rewards.behaviour_prompt import KIND, option_of
from rewards.format import parse_response
from rewards.judge import RIGHT, Scorer
from rewards.refinements import ANSWER_CHANGES, answer_change, find_refinements
from rl.behaviour.intervals import share, shares
from rl.behaviour.judge import ask_all, behaviour_items
from rl.evaluation.answers import Answer

TRANSITIONS = ("right->right", "wrong->wrong", "wrong->right", "right->wrong")
GRADES = ("high", "middle", "low")
HIGH, LOW = 0.85, 0.45  # the paper's bins of coherence and alignment
BINS = 10  # of histograms over [0, 1]


def analyse(
    plain: list[Answer], refined: list[Answer], *, scorers: dict[str, Scorer] | None = None, judge_limit: int = 300
) -> dict:
    """Every analysis that the answers allow; a plain dictionary, fit for JSON.

    Args:
        plain, refined: answers of the two methods, paired by their keys.
        scorers: by the names of `rl.behaviour.judge.ASKED`; none: the judge's parts are left out.
        judge_limit: items put to the judge for each of its parts; a fixed choice among the refined answers.
    """
    analysis = {
        "transitions": transitions(plain, refined),
        "whether": whether(plain, refined),
        **when_and_how_long(refined),
        "effect": effect(refined),
    }
    if scorers:
        analysis["judge"] = judged(refined, scorers, judge_limit)
    return analysis


def is_right(answer: Answer) -> bool:
    """Whether a graded answer counts as right where only yes or no will do."""
    return answer.score >= RIGHT


def pair_answers(plain: list[Answer], refined: list[Answer]) -> list[tuple[Answer, Answer]]:
    """(plain, refined) answers to the same question, both of them scored."""
    by_key = {answer.key: answer for answer in plain}
    pairs = [(by_key[answer.key], answer) for answer in refined if answer.key in by_key]
    return [(p, r) for p, r in pairs if p.score is not None and r.score is not None]


def transitions(plain: list[Answer], refined: list[Answer]) -> dict:
    """From plain to refined answer: the shares of right->right, wrong->wrong, wrong->right and right->wrong.

    These are two answers, drawn with two prompts: what changed between them need not be the work of a refinement.
    """
    pairs = pair_answers(plain, refined)
    by_benchmark: dict[str, list[str]] = {}
    for p, r in pairs:
        kind = f"{'right' if is_right(p) else 'wrong'}->{'right' if is_right(r) else 'wrong'}"
        by_benchmark.setdefault(p.benchmark, []).append(kind)
    return {
        "pairs": len(pairs),
        "questions": len({p.key[:2] for p, _ in pairs}),
        "left_out": {"plain": len(plain) - len(pairs), "refined": len(refined) - len(pairs)},
        "shares": shares([kind for kinds in by_benchmark.values() for kind in kinds], TRANSITIONS),
        "by_benchmark": {name: shares(kinds, TRANSITIONS) for name, kinds in sorted(by_benchmark.items())},
    }


def whether(plain: list[Answer], refined: list[Answer]) -> dict:
    """How often answers are well formed and refine, how many refinements they have, and whether need decides."""
    counts = [len(find_refinements(answer.text)) for answer in refined]
    pairs = pair_answers(plain, refined)

    def refining(of: list[Answer]) -> dict:
        return share(sum(bool(find_refinements(answer.text)) for answer in of), len(of))

    return {
        "wellformed": share(sum(parse_response(answer.text) is not None for answer in refined), len(refined)),
        "refine": share(sum(count > 0 for count in counts), len(refined)),
        "refine_where_plain_wrong": refining([r for p, r in pairs if not is_right(p)]),
        "refine_where_plain_right": refining([r for p, r in pairs if is_right(p)]),
        "refinements": shares([str(count) if count < 3 else "3+" for count in counts], ("0", "1", "2", "3+")),
    }


def when_and_how_long(refined: list[Answer]) -> dict:
    """Where refinements begin and how long they are, as shares of the response's characters.

    `tokens` estimates their length: the same share of the response's tokens.
    """
    found = [(r, answer.tokens) for answer in refined for r in find_refinements(answer.text)]
    return {
        "when": _distribution([r.begin for r, _ in found]),
        "how_long": _distribution([r.share for r, _ in found])
        | {
            "characters": _centre([r.characters for r, _ in found]),
            "tokens": _centre([r.share * tokens for r, tokens in found]),
        },
    }


def effect(refined: list[Answer]) -> dict:
    """What refinements do, as far as the text tells (see `answer_change`), and how right answers with and without them are."""
    refining = [answer for answer in refined if find_refinements(answer.text)]
    changes = [answer_change(answer.text) for answer in refining]
    comparable = [change for change in changes if change is not None]
    repeats = [r.repeats for answer in refining for r in find_refinements(answer.text)]
    others = [answer for answer in refined if not find_refinements(answer.text)]
    scored = {
        name: [answer for answer in group if answer.score is not None]
        for name, group in (("refining", refining), ("not_refining", others))
    }
    return {
        "repeats": share(sum(repeats), len(repeats)),
        "answer": shares(comparable, ANSWER_CHANGES),
        "not_comparable": len(changes) - len(comparable),
        "right": {name: share(sum(map(is_right, group)), len(group)) for name, group in scored.items()},
    }


def judged(refined: list[Answer], scorers: dict[str, Scorer], limit: int) -> dict:
    """Coherence, alignment and kind of refinements. What the judge failed at is counted and in no share."""
    asked: dict[str, list] = {name: [] for name in scorers}
    for answer in sorted(refined, key=lambda a: stable_seed("behaviour", *a.key)):
        for name, items in behaviour_items(answer.question, answer.text).items():
            asked[name] += items
    scores = ask_all(scorers, {name: items[:limit] for name, items in asked.items()})
    result = {}
    for name, values in scores.items():
        known = [value for value in values if value is not None]
        result[name] = {"there_are": len(asked[name]), "asked": len(values), "failed": len(values) - len(known)}
        if name == "kind":
            result[name]["shares"] = shares([option_of(value, KIND.options) for value in known], KIND.options)
        else:
            result[name] |= _centre(known) | {"shares": shares([grade(value) for value in known], GRADES)}
    return result


def grade(score: float) -> str:
    """The paper's bin of a coherence or alignment score: high from .85, low below .45."""
    return "high" if score >= HIGH else "low" if score < LOW else "middle"


def _centre(values: list[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "median": median(values)} if values else {"mean": None, "median": None}


def _distribution(values: list[float]) -> dict:
    """Values in [0, 1]: how many, their centre, and counts in equal bins."""
    bins = [0] * BINS
    for value in values:
        bins[min(BINS - 1, int(value * BINS))] += 1
    return {"count": len(values), **_centre(values), "bins": bins}
