"use strict";

// Light and dark: the system's choice until the button is used.
const root = document.documentElement;
const remembered = (() => { try { return localStorage.getItem("pasr-theme"); } catch { return null; } })();
if (remembered) root.dataset.theme = remembered;
document.getElementById("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  try { localStorage.setItem("pasr-theme", root.dataset.theme); } catch { /* a browser that stores nothing for files */ }
});

// Curves: the legend tells the values at the step pointed at.
const hover = JSON.parse(document.getElementById("hover").textContent);
const shortNumber = (value) =>
  value === null || value === undefined ? "–"
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US")
  : value === 0 || Math.abs(value) >= 1e-3 ? value.toFixed(Math.abs(value) < 10 ? 3 : 1)
  : value.toExponential(1);

for (const figure of document.querySelectorAll("[data-chart]")) {
  const data = hover[figure.dataset.chart], plot = figure.querySelector(".plot");
  const cells = [...figure.querySelectorAll(".legend b")], last = cells.map((cell) => cell.textContent);
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  cursor.hidden = true;
  cursor.append(document.createElement("span"));
  plot.append(cursor);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width - data.left) / (data.right - data.left);
    const target = data.low + share * (data.high - data.low);
    let nearest = 0;
    data.x.forEach((step, i) => { if (Math.abs(step - target) < Math.abs(data.x[nearest] - target)) nearest = i; });
    if (!data.x.length) return;
    cells.forEach((cell, i) => {
      const at = data.steps[i].indexOf(data.x[nearest]);
      cell.textContent = at < 0 ? "–" : shortNumber(data.y[i][at]);
    });
    const x = data.left + (data.right - data.left) * (data.x[nearest] - data.low) / (data.high - data.low);
    cursor.style.left = `${100 * x}%`;
    cursor.firstChild.textContent = `step ${data.x[nearest].toLocaleString("en-US")}`;
    cursor.hidden = false;
  });
  plot.addEventListener("pointerleave", () => {
    cursor.hidden = true;
    cells.forEach((cell, i) => { cell.textContent = last[i]; });
  });
}

// Responses: one run, one step, one outcome at a time.
const samples = document.getElementById("samples");
if (samples) {
  const cards = [...samples.querySelectorAll(".cards .card")], buttons = [...samples.querySelectorAll("[data-outcome]:is(button)")];
  const runs = document.getElementById("run");
  let outcome = "";
  const showCorrection = (card) => {  // a long response begins at its first refinement
    const text = card.querySelector(".response"), mark = text.querySelector(".refine");
    if (mark) text.scrollTop = mark.offsetTop - text.clientHeight / 3;
    card.dataset.seen = "1";
  };
  const show = () => {
    const run = runs ? runs.value : "0";
    for (const label of samples.querySelectorAll(".of-run")) label.hidden = label.dataset.run !== run;
    const step = samples.querySelector(`.of-run[data-run="${run}"] select`).selectedOptions[0];
    const counts = JSON.parse(step.dataset.counts);
    for (const button of buttons) {
      const name = button.dataset.outcome, count = name ? counts[name] || 0 : Number(step.dataset.total);
      button.querySelector("b").textContent = count;
      button.setAttribute("aria-pressed", String(name === outcome));
      button.hidden = name === "not scored" && !count && outcome !== name;
    }
    let visible = 0;
    for (const card of cards) {
      const of = card.dataset;
      card.hidden = of.run !== run || of.step !== step.value || (outcome !== "" && of.outcome !== outcome);
      if (!card.hidden && !of.seen) showCorrection(card);
      visible += card.hidden ? 0 : Number(of.copies);
    }
    const all = outcome ? counts[outcome] || 0 : Number(step.dataset.total);
    document.getElementById("shown").textContent = `${visible} of ${all} ${outcome} responses of step ${step.value} shown`.replace("  ", " ");
  };
  for (const button of buttons) button.addEventListener("click", () => { outcome = button.dataset.outcome; show(); });
  for (const select of samples.querySelectorAll("select")) select.addEventListener("change", show);
  show();
}
