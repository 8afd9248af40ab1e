// Keeps a page live: it is asked for again, and what has changed is put in its place. All of it is rendered by the
// server; without this script the page is the same, but stands still.
"use strict";
const EVERY = 2000; // milliseconds
const shown = new Map(); // id → HTML of the server, as it was last put in
let paused = false;

function serverHtml(element) { return element.outerHTML; }

// Who reads or types in an element keeps it as it is.
function inUse(element) {
  const active = document.activeElement;
  return active !== null && active !== document.body && element.contains(active) && active.matches("a, button, input, select, summary");
}

function openDetails(element) {
  return [...element.querySelectorAll("details[open][id]")].map((each) => each.id);
}

function replace(old, fresh) {
  const opened = openDetails(old);
  const scrolled = [...old.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  old.replaceWith(fresh);
  opened.forEach((id) => { const each = document.getElementById(id); if (each) each.open = true; });
  fresh.querySelectorAll(".scroll").forEach((each, i) => { each.scrollLeft = scrolled[i] || 0; });
}

function update(old, fresh) {
  const html = serverHtml(fresh);
  if (shown.get(old.id) === html || inUse(old)) return;
  shown.set(old.id, html);
  announceChange(old, fresh);
  replace(old, fresh);
}

function updateList(old, fresh) {
  [...fresh.children].forEach((wanted, i) => {
    let there = document.getElementById(wanted.id);
    if (!there || there.parentElement !== old) {
      there = wanted.cloneNode(true);
      shown.set(wanted.id, serverHtml(wanted));
      old.insertBefore(there, old.children[i] || null);
      return;
    }
    if (old.children[i] !== there) old.insertBefore(there, old.children[i] || null);
    update(there, wanted.cloneNode(true));
  });
  const wanted = new Set([...fresh.children].map((each) => each.id));
  [...old.children].filter((each) => !wanted.has(each.id) && !inUse(each)).forEach((each) => { shown.delete(each.id); each.remove(); });
}

function announceChange(old, fresh) {
  const before = old.querySelector("[data-announce]");
  const after = fresh.querySelector("[data-announce]");
  if (before && after && before.dataset.announce !== after.dataset.announce) {
    document.getElementById("announce").textContent = after.dataset.announce;
  }
}

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }


function draw(plot) {
  if (typeof Plotly === "undefined") return;
  const chart = JSON.parse(plot.dataset.chart);
  const times = chart.times.map((at) => new Date(at).toISOString().slice(0, 19));
  const traces = chart.lines.map((line) => ({
    type: "scatter", mode: "lines+markers", name: line.name, x: times, y: line.values, connectgaps: false,
    line: { color: colour(line.colour), dash: line.dash, width: 2 }, marker: { color: colour(line.colour), size: 4 },
    hovertemplate: `%{y:.4~g} ${chart.unit}<extra>${line.name}</extra>`,
  }));
  const axis = { color: colour("soft"), gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), tickfont: { size: 11 }, automargin: true };
  const layout = {
    height: 210, margin: { l: 44, r: 10, t: 8, b: 30 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "x unified",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    xaxis: { ...axis, type: "date", tickformat: "%H:%M:%S", nticks: 5 }, yaxis: { ...axis, rangemode: "tozero", nticks: 5 },
    legend: { orientation: "h", y: -0.22, x: 0, font: { size: 11 } }, showlegend: true,
  };
  Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true });
}

function drawAll() { document.querySelectorAll("[data-chart]").forEach(draw); }

function redraw(plot, fresh) {
  if (plot.dataset.chart === fresh.dataset.chart) return;
  plot.dataset.chart = fresh.dataset.chart;
  draw(plot);
}

async function refresh() {
  const told = document.getElementById("freshness");
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
    if (!answer.ok) throw new Error(answer.type === "opaqueredirect" ? "sign in again" : `it answers ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    page.querySelectorAll("[data-live]").forEach((fresh) => {
      const old = document.getElementById(fresh.id);
      if (old) update(old, document.importNode(fresh, true));
    });
    page.querySelectorAll("[data-live-list]").forEach((fresh) => {
      const old = document.getElementById(fresh.id);
      if (old) updateList(old, document.importNode(fresh, true));
    });
    page.querySelectorAll("[data-chart]").forEach((fresh) => {
      const old = document.getElementById(fresh.id);
      if (old) redraw(old, fresh);
    });
    if (told) told.textContent = `as of ${new Date().toISOString().slice(11, 19)}`;
    document.body.classList.remove("stale");
  } catch (error) {
    if (told && !document.body.classList.contains("stale")) told.textContent += `; the console does not answer (${error.message})`;
    document.body.classList.add("stale");
  }
}

async function stayLive() {
  for (;;) {
    await new Promise((done) => setTimeout(done, EVERY));
    if (!paused && !document.hidden) await refresh();
  }
}

document.querySelectorAll("[data-live], [data-live-list] > *").forEach((each) => shown.set(each.id, serverHtml(each)));
document.addEventListener("theme", drawAll);
function lacks(image) { image.closest(".frame")?.classList.add("none"); } // a picture that cannot be had
document.addEventListener("error", (event) => { if (event.target instanceof HTMLImageElement) lacks(event.target); }, true);
document.querySelectorAll(".frame img").forEach((each) => { if (each.complete && !each.naturalWidth) lacks(each); });
const pause = document.getElementById("pause");
if (pause) {
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on updating" : "Pause updates";
  });
}
document.querySelectorAll(".needs-script").forEach((each) => { each.hidden = false; }); // before a chart takes its width
drawAll();
stayLive();
