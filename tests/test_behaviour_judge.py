"""What judges say of refinements: coherence, alignment and kind, asked of a server or of a model, and replies that are none."""

import pytest
import torch
from conftest import make_model
from evaluation import record, response
from judging import FakeJudge, running
from test_local_judge import character_tokenizer

from rewards.judge import Judgement, RuleScorer
from rewards.judge_prompts import INSTRUCTIONS, KINDS, check_template, option_of, option_score, parse_option
from rl.config import Config
from rl.evaluation.behaviour import JUDGE_PROMPTS as BEHAVIOUR
from rl.evaluation.behaviour import analyse, behaviour_items
from rl.evaluation.behaviour_report import TRIED
from rl.evaluation.run import JUDGE_PROMPTS as BENCHMARKS
from rl.judging.judge import CASES, JudgeSpec, make_scorers
from rl.judging.local_judge import LocalJudge, likely_option

REPLIES = {"A": 0, "(b)": 1, "C.": 2, "D)": 3, " d\n": 3}
NO_REPLIES = ("", "E", "AB", "A or B", "The kind is A", "A: error correction", "0", "a b", "error correction")


@pytest.mark.parametrize("reply", [*REPLIES, *NO_REPLIES])
def test_a_kind_is_one_letter(reply):
    """Bug guarded: the first letter of an explanation, or a default."""
    score = parse_option(reply, 4)
    assert (None if score is None else KINDS.index(option_of(score, KINDS))) == REPLIES.get(reply)


def test_prompts_can_be_used_by_both_kinds_of_judge():
    """Bug guarded: a placeholder lost in editing, a letter without its kind, a digit asked of a judge that writes."""
    for prompt in (*BEHAVIOUR.values(), *BENCHMARKS.values()):
        check_template(prompt.server)
        check_template(prompt.local)
    for prompt in BENCHMARKS.values():
        assert "to 9" in prompt.local or "9 if" in prompt.local
        assert "to 9" not in prompt.server
        assert "9 if" not in prompt.server
    for letter, kind in zip(INSTRUCTIONS["kind"].letters, KINDS, strict=True):
        assert f"\n{letter}: {kind};" in INSTRUCTIONS["kind"].request


def test_judges_see_the_right_parts():
    items = behaviour_items("q", response("one<refine>two</refine>three<refine>four</refine>five", "six"))
    assert items["coherence"] == [Judgement("q", "one", "two\nthree four five"), Judgement("q", "one two three", "four\nfive")]
    assert items["alignment"] == [Judgement("q", "one two three four five", "six")]
    assert items["kind"] == [Judgement("q", "one", "two"), Judgement("q", "one two three", "four")]
    assert len(behaviour_items("q", response("<refine>r</refine>"))["coherence"]) == 0, "nothing stands before it"
    assert not any(behaviour_items("q", "<think>").values())


def test_judged_by_a_server(tmp_path, capsys):
    """Bug guarded: unreadable replies counted as low, or as the first kind; another question's cached score; a wrong bin."""
    texts = [response(f"{n}<refine>more {n}</refine>", str(n)) for n in range(8)]
    coherence = ["1", "0.85", "0.84", "0.45", "0.44", "0", "good", "8/10"]
    kinds = ["A", "D", "D", "B", "D", "C or D", "A: because", "d"]

    def reply(prompt: str) -> str:
        if "question " not in prompt:
            return "0.5"  # while the judge is tried out
        n = int(prompt.split("question ")[1][0])
        if "hang" in prompt:
            return coherence[n]
        return kinds[n] if "\nD: " in prompt else "1"

    refined = [record(str(n), 1.0, text=text) for n, text in enumerate(texts)]
    with running(FakeJudge(reply)) as server:
        spec = JudgeSpec.of(Config(judge=server.url, judge_model="m", device="cpu"), tmp_path)
        for _ in range(2):  # the second time from the cache
            scorers = make_scorers(spec, BEHAVIOUR, None, tried=TRIED)
            found = analyse([], refined, "rule", scorers)
            for scorer in scorers.values():
                scorer.close()
    counts = {name: [share["count"] for share in found[name]["shares"].values()] for name in INSTRUCTIONS}
    assert counts == {"coherence": [2, 2, 2], "alignment": [8, 0, 0], "kind": [1, 1, 0, 4]}
    assert found["kind"]["counts"] == {"there are": 8, "put to the judge": 8, "failed": 2}
    assert found["coherence"]["counts"]["failed"] == 2
    assert found["kind"]["shares"]["task alignment"]["of"] == 6
    assert len(server.asked) == len(CASES) + 24 + 4, "what could not be read is asked again, nothing else"
    assert "WARNING: this judge does not tell right answers" in capsys.readouterr().out


class KeepsItems(RuleScorer):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.items = []

    def submit(self, item):
        self.items.append(item)
        return super().submit(item)


def test_a_part_of_the_refinements_is_judged(monkeypatch):
    """Bug guarded: a limit that is not one, or takes the head of a sorted file; other items in every analysis."""
    refined = [record(str(n), 1.0, text=response(f"{n}<refine>more {n}</refine>", str(n))) for n in range(20)]
    monkeypatch.setattr("rl.evaluation.behaviour.JUDGE_LIMIT", 5)
    asked = []
    for answers in (refined, refined[::-1]):
        scorers = {name: KeepsItems() for name in BEHAVIOUR}
        found = analyse([], answers, "rule", scorers)["kind"]
        assert found["counts"] == {"there are": 20, "put to the judge": 5, "failed": 0}
        asked.append(scorers["kind"].items)
    assert asked[0] == asked[1] != [Judgement(f"question {n}", str(n), f"more {n}") for n in range(5)]


def test_local_judge_reads_letters(family):
    """Bug guarded: digits read instead of letters, an unsure judge given a kind."""
    logits = torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0], [1.0, 1.0, 1.0, 1.0], [torch.nan] * 4])
    known = likely_option(logits).tolist()
    assert known[:2] == [option_score(1, 4), option_score(3, 4)]
    assert all(value != value for value in known[2:])
    tokenizer = character_tokenizer()
    model = make_model(family, torch.float64, vocab_size=len(tokenizer), num_hidden_layers=2)
    judge = LocalJudge(model, tokenizer, prompt_template="{question}{reference}{answer}", symbols="ABCD", read=likely_option)
    items = [Judgement(f"q{n}", "r", "a") for n in range(12)]
    futures = [judge.submit(item) for item in items]
    judge.finish()
    for item, future in zip(items, futures, strict=True):
        ids = torch.tensor([tokenizer.encode(judge.render(item), add_special_tokens=False)])
        letters = model.logits(model(ids))[0, -1, tokenizer.convert_tokens_to_ids(list("ABCD"))].softmax(-1)
        sure = letters.max() >= 0.5
        assert future.result() == (option_score(int(letters.argmax()), 4) if sure else None)
    assert len({future.result() for future in futures}) > 1, "equal choices prove nothing"
