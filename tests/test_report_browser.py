"""The report in a real browser: no error on its console, no sideways scrolling on a phone, working filters."""

import json
import os
import re
import shutil
import subprocess

import pytest
from test_report import HARMED, response, write_run

from rl.report.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
PHONE, DESKTOP = 390, 1280
# loads the report in a frame of a given width, presses a filter, and writes what it sees into its own body
PROBE = """<!doctype html><iframe id="frame" src="REPORT" style="width:WIDTHpx;height:900px;border:0"></iframe><script>
addEventListener("load", () => {
  const page = document.getElementById("frame").contentDocument, root = page.documentElement;
  const visible = () => [...page.querySelectorAll(".cards .card")].filter((card) => card.offsetParent).length;
  const seen = {width: root.clientWidth, content: root.scrollWidth, all: visible()};
  page.querySelector('button[data-outcome="harmed"]').click();
  seen.harmed = visible();
  page.querySelector('button[data-outcome=""]').click();
  const plot = page.querySelector(".plot"), box = plot.getBoundingClientRect(), first = page.querySelector(".legend b");
  seen.last = first.textContent;
  const event = {bubbles: true, clientX: box.left + 0.13 * box.width, clientY: box.top + 9};
  plot.dispatchEvent(new PointerEvent("pointermove", event));
  seen.hovered = first.textContent;
  const paper = () => getComputedStyle(page.body).backgroundColor;
  seen.paper = paper();
  page.getElementById("theme").click();
  seen.switched = paper();
  document.body.innerHTML = `<pre>${JSON.stringify(seen)}</pre>`;
});
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything that could be too wide: long words, long names, many columns."""
    path = tmp_path_factory.mktemp("browser")
    rows = [response(), response(HARMED, accuracy=0.0), response("<think>" + "unbroken" * 90, format=-1.0, refinements=0)]
    more = {"responses": rows, "evaluated": ((0, 0.1), (3, 1.0))}
    runs = [write_run(path / f"a-run-with-quite-a-long-name-{i}", config={"zeta": i}, **more) for i in range(4)]
    return {1: write_report(runs[:1]), 4: write_report(runs, path / "four.html")}


def look(report, width: int, tmp_path) -> tuple[dict, list[str]]:
    """Return what the probe saw, and the messages on the console."""
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("REPORT", report.as_uri()).replace("WIDTH", str(width)))
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [
        BROWSER, "--headless", *sandbox, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--window-size=1400,1000", "--virtual-time-budget=2000", "--dump-dom", probe.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<pre>" in done.stdout, done.stderr
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(re.search("<pre>(.*?)</pre>", done.stdout).group(1)), messages


@pytest.mark.parametrize("runs", [1, 4])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_works_in_a_browser(report, runs, width, tmp_path):
    """Bug guarded: a script that fails, a page wider than the screen, filters and theme that do nothing."""
    seen, messages = look(report[runs], width, tmp_path)
    assert not messages
    assert seen["content"] <= seen["width"], "the page scrolls sideways"
    assert seen["width"] >= width - 20
    assert (seen["all"], seen["harmed"]) == (3, 1)
    assert seen["last"] != seen["hovered"]
    assert seen["paper"] != seen["switched"]
