"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();

function ink() { return getComputedStyle(document.documentElement).getPropertyValue("--ink").trim(); }

function draw(id) {
  const figure = data.figures[id];
  figure.layout.font.color = ink();
  Plotly.react(id, figure.data, figure.layout, config);
  drawn.add(id);
}

function drawVisible() {
  for (const plot of document.querySelectorAll("article:not([hidden]) .plot")) {
    if (drawn.has(plot.id)) Plotly.Plots.resize(plot); else draw(plot.id);
  }
}

function ranks(values) {
  const order = values.map((v, i) => [v, i]).sort((a, b) => a[0] - b[0]);
  const out = new Array(values.length);
  for (let i = 0; i < order.length;) {
    let j = i;
    while (j < order.length && order[j][0] === order[i][0]) j++;
    for (let k = i; k < j; k++) out[order[k][1]] = (i + j - 1) / 2;
    i = j;
  }
  return out;
}

function spearman(x, y) {
  const a = ranks(x), b = ranks(y), mean = (x.length - 1) / 2;
  let xy = 0, xx = 0, yy = 0;
  a.forEach((v, i) => { xy += (v - mean) * (b[i] - mean); xx += (v - mean) ** 2; yy += (b[i] - mean) ** 2; });
  return xx && yy ? xy / Math.sqrt(xx * yy) : NaN;
}

function scatter(form) {
  const key = form.dataset.scatter, link = data.links[key];
  const kind = form.kind.value, x = form.x.value, y = form.y.value;
  const rows = link.rows.filter((r) => r.kind === kind && r[x] != null && r[y] != null);
  const palette = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a00"];
  const figure = data.figures[key + "-scatter"];
  figure.data = [...new Set(rows.map((r) => r.group))].map((group, i) => {
    const own = rows.filter((r) => r.group === group);
    return {
      type: "scatter", mode: "markers", name: group, x: own.map((r) => r[x]), y: own.map((r) => r[y]),
      text: own.map((r) => r.name + ", layer " + r.layer), hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
      marker: { size: 9, color: palette[i % palette.length], opacity: 0.85 },
    };
  });
  figure.layout.xaxis.title = { text: x };
  figure.layout.yaxis.title = { text: y };
  const rho = spearman(rows.map((r) => r[x]), rows.map((r) => r[y]));
  form.querySelector("output").textContent = rows.length > 2 && !isNaN(rho) ? "rank correlation " + rho.toFixed(2) + " over " + rows.length + " points" : "";
  if (!form.closest("article").hidden) draw(key + "-scatter");
}

for (const form of document.querySelectorAll("form.pick")) {
  const link = data.links[form.dataset.scatter];
  for (const axis of ["x", "y"]) for (const name of link[axis]) form[axis].add(new Option(name, name));
  form.addEventListener("change", () => scatter(form));
  form.addEventListener("submit", (event) => event.preventDefault());
  if (link.rows.length) scatter(form);
}

const tabs = [...document.querySelectorAll('[role="tab"]')];
function show(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  drawVisible();
}
tabs.forEach((tab, i) => {
  tab.tabIndex = i ? -1 : 0;
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    next.focus();
    show(next);
  });
});
dark.addEventListener("change", () => { for (const id of drawn) draw(id); });
drawVisible();
