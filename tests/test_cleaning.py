"""Cleaning of the training set: what each rule removes, and what it leaves."""

from dataclasses import replace

import pytest

from data.cleaning import CleaningRules, apply_rules, clean, duplicate_key, query_words, strip_tags
from data.examples import Example

ALL = CleaningRules(rare_query_share=0, rare_phrase_share=0)  # rules 1 and 2 alone


def row(question: str, answer: str = "An answer.", place: int = 1) -> Example:
    return Example(str(place), question, answer)


def reason(question: str, answer: str = "An answer.", rules: CleaningRules = ALL) -> str:
    return apply_rules([row(question, answer)], rules)[1][0]


def test_over_long_answers_go():
    """Bug guarded: an off-by-one at the limit, a limit that counts the question or the spaces around."""
    rules = replace(ALL, max_answer_chars=10)
    assert reason("q" * 99, "a" * 10 + "\r\n ", rules) == ""
    assert reason("q", "a" * 11, rules) == "long_answer"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("\ufeff\u200b", "empty"),
        ("?", "rubbish"),
        ("--------", "rubbish"),
        ("!@#$%^&*(){}|:<>? x !@#$%^&*()", "rubbish"),
        ("�" * 40 + " ok", "rubbish"),
        ("```\n;;;\n```", "rubbish"),
        ("😀 😀 😀", "rubbish"),
        ("42", ""),
        ("C++", ""),
        ("+1 / -1", ""),
        ("Ответ: сорок два, и это не шутка.", ""),
        ("什么是机器学习？请用简单的语言解释。", ""),
        ("पीली मछली ली थी, की भी, दी भी, सी भी, पी भी ही", ""),  # half of it combining marks
        ("∫ f(x) dx = F(b) - F(a), with x² ≤ 4π and 𝑤(𝑡) = 𝑥(𝑡)", ""),
        ("| a | b |\n|------------|------------|\n| 1 | 2 |", ""),
        ("Fill in: success takes ________, ________ and ________.", ""),
        ("```c\na[i]^=*(p+(~(j)<<2))&((*q)[-1]);\n```", ""),
        ("Use `}{)(*&^%$#@!}{)(*&^%$#@!}{)(*&^%$#@!` here.", ""),
    ],
)
def test_noise_goes_and_unusual_text_stays(text, why):
    """Bug guarded: empty texts, which the loader refuses; symbol soup trained on; scripts, formulas, code taken for noise."""
    assert reason(text) == reason("What?", text) == why


def test_duplicates_go_and_the_first_stays():
    """Bug guarded: duplicates that differ in case, spaces or accents' composition; different sums taken for one; both lost."""
    texts = ["What is  café?", "what is cafe\u0301", "WHAT IS\r\nCAFÉ ?"]
    texts += ["3 + 4", "3 - 4", "What is C?", "What is C++?", "5!", "5"]
    kept, counts = clean([row(text, f"{i}.", i) for i, text in enumerate(texts)], ALL)
    assert [r.id for r in kept] == ["0", "3", "4", "5", "6", "7", "8"]
    assert counts["duplicate"] == 2
    assert duplicate_key("x² = 4") != duplicate_key("x2 = 4")
    # a removed row does not shadow its duplicate
    kept, counts = clean([row("Why?", "a" * 9999, 0), row("Why?", "So.", 1)], ALL)
    assert [r.id for r in kept] == ["1"]
    assert [name for name, count in counts.items() if count] == ["rows_in", "long_answer", "rows_out"]


def test_stray_tags_are_stripped_and_the_text_stays():
    """Bug guarded: a good row lost to a line break, words glued together, an entity unescaped into a tag."""
    before = row(
        "<p>Why is the <b>sky</b> blue?<br/>Explain&nbsp;it.</p>",
        '<div class="x">Scattering.</div><table><tr><td>red</td><td>far</td></tr></table>&lt;end&gt;',
    )
    after = strip_tags(before)
    assert after.question == "Why is the sky blue?\nExplain it."
    assert after.reference.split() == ["Scattering.", "red", "far", "<end>"]
    assert clean([before, row("Plain?")], ALL)[1]["tags_stripped"] == 1
    assert reason("<br><br/> <p></p>") == "empty"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How do I write a heading in HTML?", "<h1>Title</h1> gives one; <br> breaks a line, &nbsp; is a space."),
        ("What does <b> do on a web page?", "It makes text bold."),
        ("Fix it: List<A> x = new List<A>(); <p>no</p>", "Declare A first in your C# code."),
        ("Why is this wrong?\n```\n<p>text<b>\n```", "The end of the first is missing."),
        ("What does `<br>` do, and `<p>`?", "A line ends."),
        ("Is a < b and c > d possible for a set <a> in <b>?", "Yes: if a <b and c> d."),
        ("What is 10<sup>6</sup>?", "A million."),
        ("#include <iostream> vector<int> v;", "Includes."),
    ],
)
def test_markup_that_is_the_topic_stays(question, answer):
    """Bug guarded: programming questions robbed of their tags, type parameters and comparisons taken for tags."""
    before = row(question, answer)
    assert strip_tags(before) == before
    assert reason(question, answer) == ""


def test_the_long_tail_goes_and_nothing_else():
    """Bug guarded: the frequency rule drops common questions, or more than its share."""
    common = [row(f"How can I {verb} the {thing} of my house?", place=i * 10 + j)
              for i, verb in enumerate(("paint", "clean", "sell", "rent", "find"))
              for j, thing in enumerate(("door", "roof", "floor", "garden"))]  # fmt: skip
    odd = row("Zygomatic quokkas yodel xerophytic kvetches beneath jejune fjords?", place=99)
    rules = replace(ALL, rare_query_share=0.05)
    kept, counts = clean([*common[:10], odd, *common[10:]], rules)
    assert kept == common
    assert counts["rare_query"] == 1
    # known words, unheard-of pairs: only the phrase rule sees it
    shuffled = row("house garden how of can my the roof find I", place=98)
    assert clean([*common, shuffled], replace(ALL, rare_phrase_share=0.05))[0] == common


def test_equals_and_small_corpora_lose_nothing():
    """Bug guarded: a tail cut through rows that are equally common; a handful of rows of which none is left."""
    same = [row(f"What is {n} plus {n}?", place=n) for n in range(50)]
    assert clean(same, CleaningRules())[0] == same
    few = [row("Whence quarks?", place=1), row("Define osmosis.", place=2), row("苹果是什么？", place=3)]
    assert clean(few, CleaningRules())[0] == few
    assert not any(clean([], CleaningRules())[1].values())


def test_names_in_code_are_not_rare_words():
    """Bug guarded: every programming question in the long tail because of its identifiers."""
    code = "`fooBar`:\n```py\nqux = 1\n```\nfor (int zig = 0; zig < 9; zig++) {\nimport zag\n"
    assert set(query_words(f"Fix my loop {code}")) == {"fix", "my", "loop"}
    assert set(query_words("Don't say 苹果, says O'Neil 42 times")) == {"don't", "say", "苹", "果", "says", "o'neil", "times"}
