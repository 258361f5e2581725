"""report.html: what is on the page, what must never get onto it, and what a half-written run does to it."""

import html.parser
import json
import re
import shutil
import sys

import pytest
from conftest import flags, lines_of

import train
from rl.report.__main__ import main
from rl.report.curves import SECTIONS, Chart, draw, running_mean
from rl.report.page import drawn_sections, has_packages, headline_rows, write_report
from rl.report.runs import OUTCOMES, RunRecord, choose, load_run, outcome_of, segments, shorten, spread

FIXED = "<think>6:402><refine>5:335<</refine></think><answer>5</answer>"
HARMED = "<think>5:335<<refine>6:402></refine></think><answer>6</answer>"


class Page(html.parser.HTMLParser):
    """What a browser would see: elements with their attributes, and the text of cards."""

    def __init__(self, file):
        super().__init__()
        self.elements, self.text, self.source = [], "", file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem is None:  # neither script nor style
            self.text += data

    def all(self, tag: str, css_class: str = "") -> list[dict]:
        return [a for name, a in self.elements if name == tag and set(css_class.split()) <= set(a.get("class", "").split())]


def response(text: str = FIXED, **changes) -> dict:
    """A line of rollouts/."""
    record = {
        "id": "397/67", "question": "397/67", "reference": "5", "mode": "refine", "text": text, "tokens": 20,
        "finish_reason": "stop", "format": 1.0, "accuracy": 1.0, "refine": 1.0, "reward": 3.0, "baseline": 0.25,
        "advantage": 1.25, "refinements": 1, "trained": True, "dropped": "", "policy_version": 0,
    }  # fmt: skip
    return record | changes


def write_run(path, *, steps=3, responses=None, config=None, evaluated=()):
    """A run folder as train.py would leave it."""
    (path / "rollouts").mkdir(parents=True)
    (path / "eval").mkdir()
    settings = {"preset": "demo", "model": None, "steps": steps, "zeta": 0.3} | (config or {})
    (path / "config.json").write_text(json.dumps({"config": settings, "git": "abc", "versions": {"torch": "2.13"}}))
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "reward": step / 4, "pasr/refined_accuracy": step / steps, "pasr/plain_accuracy": None}
            file.write(json.dumps(row) + "\n")
            rollout = path / "rollouts" / f"step_{step:06d}.jsonl"
            rollout.write_text("".join(json.dumps(r) + "\n" for r in responses or [response()]))
    for step, accuracy in evaluated:
        answers = [{"question": "397/67", "text": FIXED, "accuracy": accuracy, "tokens": 20}]
        names = ("greedy/refined_accuracy", "greedy/plain_accuracy", "sampled/p_refine_wrong", "sampled/p_refine_right")
        content = {"metrics": dict.fromkeys(names, accuracy), "answers": {"greedy/refine": answers}}
        (path / "eval" / f"step_{step:06d}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("more", [(), ("--refine-reward", "none")])
def test_a_run_writes_its_report(place, reward_for_length, more):
    """Bug guarded: a page that forgets a curve the run has recorded, or needs the network; runs without plain answers."""
    name = "reported" + "".join(more)
    assert train.main(flags(place, name, "--save-every", "4", *more)) == 0
    run = place / "runs" / name
    page, recorded = Page(run / "report.html"), set(lines_of(run / "metrics.jsonl")[0])
    charts = [c for charts in SECTIONS.values() for c in charts if recorded & set(c.series.values())]
    assert len(page.all("svg")) == len(page.all("figure", "chart")) >= len(charts) - 1  # every value of one may be null
    cards = page.all("article", "card")
    assert {a["data-step"] for a in cards} == {str(step) for step in range(1, 9)}
    assert {a["data-outcome"] for a in cards} == {"malformed"}  # a random model
    assert len(json.loads(re.search(r'id="hover">(.*?)</script>', page.source).group(1))) == len(page.all("svg"))
    links = [a[key] for _, a in page.elements for key in ("src", "href") if key in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(" not in page.source.replace("url(#", "")
    assert "8 of 8 steps" in page.text
    assert "finished in" in page.text


def test_what_a_model_writes_is_shown_and_not_run(tmp_path):
    """Bug guarded: a response that closes the page's markup and runs its own script."""
    hostile = "<think>a<script>alert(1)</script></div><img src=x onerror=alert(2)></think>&lt;{{ 7*7 }}"
    rows = [response(hostile, question=f'"{hostile}', reference=f"'{hostile}", format=-1.0)]
    page = Page(write_report([write_run(tmp_path / "<b>run", responses=rows, config={"model": "m"})]))
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert not page.all("b", "run")
    assert page.text.count(hostile) == 3 * 3  # three steps, each with question, response and reference
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]


def test_a_run_that_is_still_writing(tmp_path):
    """Bug guarded: a report that fails on half a line, on a missing folder, or before the first step."""
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    with (run / "rollouts/step_000003.jsonl").open("a") as file:
        file.write('{"id": "x", "text": "<th')
    (run / "eval/step_000000.json").write_text('{"metrics": {"greedy')
    page = Page(write_report([run]))
    assert "1 line of metrics.jsonl could not be read" in page.text
    assert "3 of 3 steps · not finished" in page.text
    shutil.rmtree(run / "rollouts")
    (run / "config.json").unlink()
    assert not Page(write_report([run])).all("article")
    (run / "metrics.jsonl").write_text("")
    assert "No step has been made yet" in Page(write_report([run])).text
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="is no run folder"):
        write_report([run])


def test_a_run_that_has_gone_back(tmp_path):
    """Bug guarded: curves that run backwards where a copied run repeats its steps; one evaluation compared with itself."""
    run = write_run(tmp_path / "run", evaluated=((0, 0.0),))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward": 9.0}\n')
    found = load_run(run)
    assert (found.steps, found.column("reward")) == ([1, 2, 3], [0.25, 9.0, 0.75])
    assert found.first_answers == found.last_answers == {}
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (3, 1, 2)))
    assert load_run(run).steps == [1, 2, 3]


def test_any_text_can_be_written(tmp_path):
    """Bug guarded: half a surrogate, which JSON can carry and UTF-8 cannot; a separator of lines that cuts a record in two."""
    run = write_run(tmp_path / "run", responses=[response("\ud83d 文 🙂\x00")])
    (run / "rollouts/step_000001.jsonl").write_text(json.dumps(response("one\u2028line"), ensure_ascii=False))
    page = Page(write_report([run]))
    assert "文 🙂" in page.text
    assert "one\u2028line" in page.text


def test_a_long_run_stays_a_small_page(tmp_path):
    """Bug guarded: a page of hundreds of megabytes; one that differs from call to call."""
    rows = [response(f"<think>{'word ' * 3000}{i}</think><answer>5</answer>", refinements=0) for i in range(60)]
    run = write_run(tmp_path / "run", steps=700, responses=rows[:1])
    for step in (1, 700):
        (run / f"rollouts/step_{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report([run]))
    cards = page.all("article", "card")
    assert len(cards) == 24 + 8 + 24
    assert {cards[0]["data-step"], cards[-1]["data-step"]} == {"1", "700"}
    assert "characters left out" in page.text
    assert len(page.source) < 1_000_000
    assert Page(write_report([run])).source == page.source


def test_two_runs_side_by_side(tmp_path):
    """Bug guarded: curves of one run under the name or the colour of another."""
    first = write_run(tmp_path / "first", evaluated=((0, 0.5), (3, 1.0)))
    second = write_run(tmp_path / "second", config={"refine_reward": "presence"})
    assert main([str(first), str(second), "--out", str(tmp_path / "both.html")]) == 0
    page = Page(tmp_path / "both.html")
    table = "".join(page.text.split())
    assert "Accuracy,refineprompttraining0.333→1.0000.333→1.000" in table  # held-out figures of one run alone compare nothing
    assert "--refine-rewardcomparepresence" in table
    assert "--steps" not in table
    legends = re.findall(r'<p class="legend">(.*?)</p>', page.source)
    assert main([str(first)] * 7) == 2  # two runs of one colour
    named = [re.findall(r"curve-(\d)\"></i>(\w+)", text) for text in legends]
    assert len(legends) == len(page.all("svg")) == 5
    both, one = [("0", "first"), ("1", "second")], [("0", "first")]
    assert named.count(both) == 2  # reward and accuracy
    assert named.count(one) == 3  # what is known from evaluations alone
    assert {a["data-run"] for a in page.all("article", "card")} == {"0", "1"}


DEMO, REAL = {"model": None, "zeta": 0.05}, {"model": "m", "zeta": 0.05}


@pytest.mark.parametrize(
    ("config", "changes", "outcome"),
    [
        (DEMO, {}, "fixed"),
        (DEMO, {"text": HARMED, "accuracy": 0.0}, "harmed"),
        (DEMO, {"text": FIXED.replace("6:402>", "5:335<")}, "useless"),
        (DEMO, {"accuracy": 0.0}, "useless"),
        (DEMO, {"format": -1.0, "refinements": 0}, "malformed"),
        (DEMO, {"refinements": 0}, "not refined"),
        (REAL, {"accuracy": 0.7, "baseline": 0.5}, "fixed"),
        (REAL, {"accuracy": 0.55, "baseline": 0.5}, "useless"),  # exactly zeta
        (REAL, {"accuracy": 0.2, "baseline": 0.5, "refine": 1.0}, "harmed"),  # --refine-reward presence pays it all the same
        (REAL, {"accuracy": None}, "not scored"),
        (REAL, {"baseline": None}, "not scored"),
        (REAL, {"format": -1.0, "accuracy": None}, "malformed"),
    ],
)
def test_what_a_refinement_changed(config, changes, outcome):
    """Bug guarded: a response filed under what it was paid, or its first trial compared with another's answer."""
    assert outcome_of(response(**changes), config) == outcome
    assert outcome in OUTCOMES


def test_rare_outcomes_are_among_the_chosen():
    """Bug guarded: the one response that got worse, lost among a hundred that did not change."""
    outcomes = ["fixed"] * 50 + ["harmed"] + ["not refined"] * 50
    chosen = choose(outcomes, 9)
    assert 50 in chosen
    assert len(chosen) == 9
    assert chosen == sorted(chosen)
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]


def test_segments_of_any_text():
    """Bug guarded: text lost at a tag that is not closed, or a refinement cut out of a long response."""
    pieces = segments(FIXED)
    assert [(p.kind, p.text) for p in pieces if p.kind in ("refine", "answer")] == [("refine", "5:335<"), ("answer", "5")]
    for text in (FIXED, "", "<refine>never closed", "</refine><answer></think>x", "<<refine>>" * 3):
        assert "".join(piece.text for piece in segments(text)) == text
    assert [p.kind for p in segments("a<refine>b<answer>c")] == ["text", "tag", "refine", "tag", "answer"]
    long = segments(f"{'x' * 9000}{FIXED}")
    assert sum(len(p.text) for p in shorten(long, 500)) < 600
    assert shorten(long, 500)[1:] == long[1:]
    assert len(shorten(segments("<refine>a" * 900), 500)) == 101


def test_curves_show_the_values(tmp_path):
    """Bug guarded: a mean that is spoilt by one missing value, a last point that is thinned away, another's colour."""
    nan = float("nan")
    assert running_mean([1.0, nan, 3.0, 5.0], 2) == [1.0, 1.0, 3.0, 4.0]
    run = RunRecord(tmp_path, "run", metrics=[{"step": step, "b": 1.0 * (step == 1000)} for step in range(1001)])
    chart = Chart("Two", "", {"a": "a", "b": "b"}, smooth=False)
    drawing = draw(chart, [("a", run, "a"), ("b", run, "b")])
    assert draw(chart, [("a", run, "a")]) is None
    assert drawing.entries == [("b", 1, "1.000")]
    assert "var(--curve-1)" in drawing.svg
    assert "var(--curve-0)" not in drawing.svg
    assert "#0" not in drawing.svg
    assert (len(drawing.hover["x"]), drawing.hover["x"][-1], drawing.hover["y"][0][-1]) == (200, 1000, 1.0)


def test_extra_figures_are_embedded(tmp_path):
    """Bug guarded: analyses left out, or their markup trusted."""
    run = write_run(tmp_path / "run")
    (run / "analysis").mkdir()
    (run / "analysis/where_it_refines.svg").write_text("<svg><script>alert(1)</script></svg>")
    page = Page(write_report([run]))
    assert page.all("img")[0]["src"].startswith("data:image/svg+xml;base64,")
    assert "run: where it refines" in page.text
    assert len(page.all("script")) == 2


def test_picture_of_the_result(tmp_path, capsys):
    """Bug guarded: answers that were right all along shown as the work of training; a picture of nothing."""
    run = write_run(tmp_path / "run", evaluated=((0, 0.0), (3, 1.0)))
    right_all_along = write_run(tmp_path / "right", evaluated=((0, 1.0), (3, 1.0)))
    shown = ["Answered wrong before, right now" in Page(write_report([one])).text for one in (run, right_all_along)]
    assert shown == [True, False]
    assert main([str(run), "--figure", str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "p.svg").read_text().count("<svg") == 1
    assert main([str(write_run(tmp_path / "no")), "--figure", str(tmp_path / "p.svg")]) == 2
    assert "needs a demo run" in capsys.readouterr().err
    for file in (run / "eval").iterdir():  # right at last, but not by a refinement
        file.write_text(file.read_text().replace("<refine>", "").replace("</refine>", ""))
    assert main([str(run), "--figure", str(tmp_path / "p.svg")]) == 2
    assert "no held-out answer was mended by a refinement" in capsys.readouterr().err


def test_benchmarks_asked_while_training(tmp_path):
    """Bug guarded: values of every 50th step lost among the steps without one, and not in the headline."""
    rows = [{"step": step, "reward": 1.0} for step in range(401)]
    for step, value in ((0, 0.25), (399, 0.75)):
        rows[step] |= {f"eval/{name}/pasr/accuracy": value for name in ("gsm8k", "average")}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = load_run(tmp_path)
    changes = {row["label"]: row["changes"] for row in headline_rows([run])}
    assert changes["Benchmarks, refine prompt"] == [("0.250", "0.750")]
    charts = {chart.title: drawing for section in drawn_sections([run]) for chart, drawing in section["charts"]}
    assert charts["gsm8k"].entries == [("pasr", 0, "0.750")]
    assert run.evaluated("eval/gsm8k/pasr/accuracy") == ([0, 399], [0.25, 0.75])


def test_without_the_packages_that_draw(tmp_path, monkeypatch, capsys):
    """Bug guarded: training that ends at its report on a machine without matplotlib, or says so at each checkpoint."""
    for name in ("matplotlib", "jinja2", "markupsafe"):
        monkeypatch.setitem(sys.modules, name, None)
    has_packages.cache_clear()
    run = write_run(tmp_path / "run")
    assert write_report([run]) is write_report([run]) is None
    assert main([str(run)]) == main([str(run), "--figure", str(tmp_path / "p.svg")]) == 2
    has_packages.cache_clear()
    assert capsys.readouterr().out.count("pip install matplotlib jinja2") == 1
    assert not (run / "report.html").exists()
