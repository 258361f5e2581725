"""The paper's training set: what each cleaning rule removes and leaves, the cache, the manifest, the way from the hub."""

import json
import statistics
from dataclasses import replace

import pytest
from conftest import SHARED, run_command

import data.evol_instruct
from data.cleaning import CleaningRules, Counts, clean, duplicate_key, query_words, rare_shares, sort_out, strip_tags
from data.evol_instruct import HUB_FILE, HUB_ID, MANIFEST_FILE, prepare, read_instructions, sha256
from data.examples import Example, load_examples

SAMPLE = SHARED / "open_qa" / "evol_instruct_sample.json"
GSM8K = SHARED / "open_qa" / "gsm8k_train_1500.jsonl"
needs_sample = pytest.mark.skipif(not SAMPLE.is_file(), reason="no Evol-Instruct sample in ../shared/data/open_qa")
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_file(), reason="no GSM8K questions in ../shared/data/open_qa")
ALL = CleaningRules(rare_query_share=0, rare_phrase_share=0)  # rules 1 and 2 alone
ROWS = [
    {"instruction": f"What is the {colour} of {thing} number {n}?", "output": f"It is {n}."}
    for n, (colour, thing) in enumerate((c, t) for c in ("price", "weight") for t in ("a box", "a car", "the house"))
]


def row(question: str, answer: str = "An answer.", place: int = 1) -> Example:
    return Example(str(place), question, answer)


def reason(question: str, answer: str = "An answer.", rules: CleaningRules = ALL) -> str:
    return sort_out([row(question, answer)], rules)[1][0]


def write(path, rows):
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_over_long_answers_go():
    """Bug guarded: an off-by-one at the limit, a limit that counts the question or the spaces around."""
    rules = replace(ALL, max_answer_chars=10)
    assert reason("q" * 99, "a" * 10 + "\r\n ", rules) == ""
    assert reason("q", "a" * 11, rules) == "long_answer"


@pytest.mark.parametrize("text", ["", " \n", "\ufeff\u200b"])
def test_empty_texts_go(text):
    """Bug guarded: the published set's empty questions reach the loader, which stops the training run."""
    assert reason(text) == reason("What?", text) == "empty"


@pytest.mark.parametrize(
    "text",
    [
        "42",
        "C++",
        "+1 / -1",
        "Ответ: сорок два, и это не шутка.",
        "什么是机器学习？请用简单的语言解释。",
        "पीली मछली ली थी, की भी, दी भी, सी भी, पी भी ही",  # half of it combining marks
        "∫ f(x) dx = F(b) - F(a), with x² ≤ 4π and 𝑤(𝑡) = 𝑥(𝑡)",
        "| a | b |\n|------------|------------|\n| 1 | 2 |",
        "Fill in: success takes ________, ________ and ________.",
        "```c\na[i]^=*(p+(~(j)<<2))&((*q)[-1]);\n```",
        "Use `}{)(*&^%$#@!}{)(*&^%$#@!}{)(*&^%$#@!` here.",
    ],
)
def test_unusual_text_is_not_rubbish(text):
    """Bug guarded: scripts with combining marks, formulas, tables and code taken for noise."""
    assert reason(text) == reason("What?", text) == ""


@pytest.mark.parametrize(
    "text", ["?", "--------", "!@#$%^&*(){}|:<>? x !@#$%^&*()", "�" * 40 + " ok", "```\n;;;\n```", "😀 😀 😀"]
)
def test_rubbish_goes(text):
    """Bug guarded: symbol soup that trains the policy on nothing."""
    assert reason(text) == reason("What?", text) == "rubbish"


def test_duplicates_go_and_the_first_stays():
    """Bug guarded: duplicates that differ in case, spaces or accents' composition; different sums taken for one."""
    texts = [
        "What is  café?",
        "what is cafe\u0301",
        "WHAT IS\r\nCAFÉ ?",
        "3 + 4",
        "3 - 4",
        "What is C?",
        "What is C++?",
        "5!",
        "5",
    ]
    kept, counts = clean([row(text, f"{i}.", i) for i, text in enumerate(texts)], ALL)
    assert [r.id for r in kept] == ["0", "3", "4", "5", "6", "7", "8"]
    assert counts.duplicate == 2
    assert duplicate_key("x² = 4") != duplicate_key("x2 = 4")


def test_a_removed_row_does_not_shadow_its_duplicate():
    """Bug guarded: both copies lost because the first had an over-long answer."""
    kept, counts = clean([row("Why?", "a" * 9999, 0), row("Why?", "So.", 1)], ALL)
    assert [r.id for r in kept] == ["1"]
    assert counts == Counts(2, 1, 0, 0, 0, 0, 0, 1, 0)


def test_stray_tags_are_stripped_and_the_text_stays():
    """Bug guarded: a good row lost to a line break, words glued together, an entity unescaped into a tag."""
    before = row(
        "<p>Why is the <b>sky</b> blue?<br/>Explain&nbsp;it.</p>",
        '<div class="x">Scattering.</div><table><tr><td>red</td><td>far</td></tr></table>&lt;end&gt;',
    )
    after = strip_tags(before)
    assert after.question == "Why is the sky blue?\nExplain it."
    assert after.reference.split() == ["Scattering.", "red", "far", "<end>"]
    assert clean([before, row("Plain?")], ALL)[1].tags_stripped == 1
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
    assert counts.rare_query == 1
    # known words, unheard-of pairs: only the phrase rule sees it
    shuffled = row("house garden how of can my the roof find I", place=98)
    assert clean([*common, shuffled], replace(ALL, rare_phrase_share=0.05))[0] == common


def test_equals_and_small_corpora_lose_nothing():
    """Bug guarded: a tail cut through rows that are equally common; a handful of rows of which none is left."""
    same = [row(f"What is {n} plus {n}?", place=n) for n in range(50)]
    assert clean(same, CleaningRules())[0] == same
    few = [row("Whence quarks?", place=1), row("Define osmosis.", place=2), row("苹果是什么？", place=3)]
    assert clean(few, CleaningRules())[0] == few
    assert clean([], CleaningRules())[1] == Counts(*[0] * 9)


def test_names_in_code_are_not_rare_words():
    """Bug guarded: every programming question in the long tail because of its identifiers."""
    assert query_words("Fix my loop `fooBar`:\n```py\nqux = 1\n```\nfor (int zig = 0; zig < 9; zig++) {\nimport zag\n") == {
        "fix", "my", "loop",
    }  # fmt: skip
    assert query_words("Don't say 苹果, says O'Neil 42 times") == {"don't", "say", "苹", "果", "says", "o'neil", "times"}


@needs_gsm8k
def test_rarity_hardly_depends_on_the_size_of_the_corpus():
    """Bug guarded: an absolute frequency limit, under which a sample is all rare words and the full set has none."""
    documents = [query_words(json.loads(line)["question"]) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    whole = rare_shares(documents, CleaningRules())
    for size, least in ((120, 0.6), (400, 0.8)):
        part = rare_shares(documents[:size], CleaningRules())
        assert statistics.correlation(part, whole[:size]) > least
        assert statistics.mean(part) == pytest.approx(statistics.mean(whole), abs=0.15)


def test_texts_are_tidied(tmp_path):
    """Bug guarded: a lone surrogate, which JSON can spell and UTF-8 cannot, stops the writing of 70,000 rows."""
    text = '[{"instruction": " a\\r\\nb\\u0000\\ufeff ", "output": "broken \\ud83d emoji \\ud83d\\ude00"}]'
    example = load_examples(prepare(write(tmp_path / "in.json", text), tmp_path))[0]
    assert (example.question, example.reference) == ("a\nb", "broken ? emoji 😀")


def test_prepared_data_manifest_and_cache(tmp_path, capsys, monkeypatch):
    """Bug guarded: work done twice, stale data after a change of source, thresholds or version, a manifest that is wrong."""
    source = write(tmp_path / "in.json", [*ROWS, ROWS[0], {"instruction": "", "output": "x"}])
    path = prepare(source, tmp_path / "out")
    assert "rows in" in capsys.readouterr().out
    examples = load_examples(path)
    assert [e.question for e in examples] == [r["instruction"] for r in ROWS]
    assert [e.id for e in examples] == [f"evol-{n:06d}" for n in range(1, 7)]
    manifest = json.loads((path.parent / MANIFEST_FILE).read_text())
    assert manifest["source"] == {"name": "in.json", "sha256": sha256(source)}
    assert manifest["output"]["sha256"] == sha256(path)
    assert manifest["rules"]["max_answer_chars"] == CleaningRules().max_answer_chars
    assert manifest["counts"]["rows_in"] == 8
    assert (manifest["counts"]["duplicate"], manifest["counts"]["empty"], manifest["counts"]["rows_out"]) == (1, 1, 6)
    assert sorted(p.name for p in path.parent.iterdir()) == ["evol_instruct.jsonl", MANIFEST_FILE]

    def runs_again(rules=CleaningRules()) -> bool:  # noqa: B008
        capsys.readouterr()
        assert prepare(source, tmp_path / "out", rules) == path
        return "up to date" not in capsys.readouterr().out

    assert not runs_again()
    assert runs_again(CleaningRules(max_answer_chars=99))
    assert runs_again()
    first = path.read_bytes()
    write(source, ROWS)
    assert runs_again()
    assert path.read_bytes() == first  # the same rows by another source: same bytes
    monkeypatch.setattr(data.evol_instruct, "VERSION", 99)
    assert runs_again()


@pytest.mark.parametrize("damage", ["cut", "edit", "no manifest", "half a manifest", "empty manifest", "other json"])
def test_half_written_or_edited_output_is_made_anew(tmp_path, damage, capsys):
    """Bug guarded: what a kill left behind is taken for the whole training set."""
    source = write(tmp_path / "in.json", ROWS)
    path = prepare(source, tmp_path / "out")
    whole, manifest = path.read_bytes(), path.parent / MANIFEST_FILE
    if damage == "cut":
        path.write_bytes(whole[:-20])
    elif damage == "edit":
        path.write_bytes(whole.replace(b"price", b"prize"))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        keep = {"half a manifest": manifest.read_text()[:50], "empty manifest": "", "other json": "[3]"}
        manifest.write_text(keep[damage])
    capsys.readouterr()
    assert prepare(source, tmp_path / "out").read_bytes() == whole
    assert "up to date" not in capsys.readouterr().out


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    """Bug guarded: a full disk leaves half a file under the final name."""

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(data.evol_instruct.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        prepare(write(tmp_path / "in.json", ROWS), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"instruction": "q", "output": "a"}', "one JSON list.*found dict"),
        ('{"instruction": "q", "output": "a"}\n{"instruction": "q", "output": "a"}', "not valid JSON"),
        ("[{]", "not valid JSON"),
        ('[{"instruction": "q", "output": "a"}, {"instruction": "q"}]', r"item 2: 'output' is missing.*\['instruction'\]"),
        ('[{"question": "q", "answer": "a"}]', "item 1: 'instruction' is missing"),
        ('[{"instruction": "q", "output": null}]', "item 1: 'output' is missing or not a text"),
        ('["q"]', "item 1: expected a JSON object, found str"),
        ('[{"instruction": "", "output": "a"}]', "left none of the 1 rows"),
        ("[]", "left none of the 0 rows"),
    ],
)
def test_bad_sources_are_named(tmp_path, content, message):
    """Bug guarded: an error that does not say which file or row, an empty training set found at step 1."""
    with pytest.raises(ValueError, match=message):
        prepare(write(tmp_path / "in.json", content), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no data file at"):
        prepare(tmp_path / "absent.json", tmp_path / "out")
    (tmp_path / "latin.json").write_bytes('[{"instruction": "é"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match="not valid JSON"):
        read_instructions(tmp_path / "latin.json")


@pytest.mark.parametrize("wrong", [{"max_answer_chars": -1}, {"rare_query_share": 1.5}, {"rare_below": float("nan")}])
def test_impossible_thresholds_are_refused(wrong):
    """Bug guarded: a percentage given for a share removes everything."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CleaningRules(**wrong)


def test_from_the_hub(tmp_path, monkeypatch, capsys):
    """Bug guarded: the wrong repository kind or file; a prepared folder that is useless without network."""
    calls = []

    def download(*given, **named):
        calls.append((given, named))
        return str(write(tmp_path / "hub.json", ROWS))

    monkeypatch.setattr(data.evol_instruct, "hf_hub_download", download)
    path = prepare(None, tmp_path / "out")
    assert calls == [((HUB_ID, HUB_FILE), {"repo_type": "dataset"})]
    assert json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())["source"]["name"] == HUB_ID
    assert prepare(None, tmp_path / "out") == path
    assert len(calls) == 1
    assert "up to date" in capsys.readouterr().out
    prepare(None, tmp_path / "out", CleaningRules(max_answer_chars=99))
    assert len(calls) == 2


def test_no_network_and_no_cache(tmp_path):
    """Bug guarded: a stack of connection errors instead of what to do, a data set cached nowhere taken for a bug."""
    script = (
        "import os, sys; os.environ['HF_HUB_CACHE'] = sys.argv.pop(1); from data.evol_instruct import main; sys.exit(main())"
    )
    result = run_command("-c", script, str(tmp_path / "cache"), "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert HUB_FILE in result.stderr
    assert "--source FILE" in result.stderr
    assert "Traceback" not in result.stderr


def test_command_line_shows_what_was_removed(tmp_path):
    """Bug guarded: the command line of the module does not run."""
    source = write(tmp_path / "in.json", [*ROWS, {"instruction": "@@@", "output": "x"}])
    command = ["-m", "data.evol_instruct", "--source", str(source), "--out", str(tmp_path / "out")]
    result = run_command(*command, "--show-removed", "2", "--rare-query-share", "0.4")
    assert result.returncode == 0, result.stderr
    assert "rubbish: 1 removed" in result.stdout
    assert "Q: '@@@'" in result.stdout
    bad = run_command(*command, "--rare-query-share", "11")
    assert bad.returncode == 1
    assert "a share from 0 to 1" in bad.stderr


@needs_sample
def test_the_real_sample(tmp_path, capsys):
    """Bug guarded: thresholds that drift away from the paper's 40,000 of 70,000; results that differ between two runs."""
    path = prepare(SAMPLE, tmp_path / "a")
    assert path.read_bytes() == prepare(SAMPLE, tmp_path / "b").read_bytes()
    kept, counts = clean(read_instructions(SAMPLE)[0], CleaningRules())
    assert counts.rows_in == 160
    assert counts.rows_out == len(kept) == len(load_examples(path))
    assert 0.54 < counts.rows_out / counts.rows_in < 0.62
    assert counts.empty == 1
    assert counts.rare_query == counts.rare_phrases == int(0.11 * (160 - counts.long_answer - counts.empty)) == 13
    half = clean(read_instructions(SAMPLE)[0][:80], CleaningRules())[1]
    assert half.rows_out / half.rows_in == pytest.approx(counts.rows_out / counts.rows_in, abs=0.08)
