"use strict";
let data = null; // figures and links, once `ready`
const config = { responsive: true, displayModeBar: false, doubleClick: "reset" };
const palette = ["#2a86c8", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a00"];
const symbols = ["circle", "square", "diamond", "cross", "x", "triangle-up", "star"];
const version = {}; // which of a figure's plots is shown
const drawn = new Set();

function ink() { return getComputedStyle(document.body).color; }

// Text and tables come first: the numbers of the figures and what draws them are unpacked after the page is shown.
async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

let library = null;
function plotly() {
  library ??= unpack("plotly").then((source) => {
    document.head.append(Object.assign(document.createElement("script"), { textContent: source }));
  });
  return library;
}

async function draw(id) {
  drawn.add(id);
  await plotly();
  const plot = shownPlot(id), place = document.getElementById(id);
  plot.layout.font.color = ink();
  tint(plot);
  await Plotly.react(id, plot.data, plot.layout, config);
  place.style.minHeight = "";
  if (plot.data[0]?.meta && !place.dataset.leads) {
    place.dataset.leads = "yes";
    place.on("plotly_click", ({ points: [cell] }) => choose(place, ...cell.pointIndex));
  }
}

function redraw(id) { return drawn.has(id) ? draw(id) : undefined; }

// A figure is drawn when it is about to come into view, and fitted when it comes back after its place has changed.
const view = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    if (!drawn.has(target.id)) draw(target.id); else if (target.querySelector(".main-svg")) Plotly.Plots.resize(target);
  }
}, { rootMargin: "50% 0px" });

// A panel's choices switch all of its figures, which have a version for each choice of the first and of the second.
for (const select of document.querySelectorAll("select[data-switch]")) {
  select.addEventListener("change", () => {
    const panel = select.closest(".panel"), choices = [...panel.querySelectorAll("select[data-switch]")];
    const chosen = choices.reduce((before, choice) => before * choice.length + Number(choice.value), 0);
    for (const place of panel.querySelectorAll(".plot")) {
      version[place.id] = chosen;
      redraw(place.id);
      offerCells(place);
    }
  });
}

// A choice among tables shows one of them.
for (const select of document.querySelectorAll("select[data-among]")) {
  const choose = () => [...document.getElementById(select.dataset.among).children].forEach((one, i) => { one.hidden = i !== Number(select.value); });
  select.addEventListener("change", choose);
  choose(); // a browser may have kept the choice
}

// The link scatter, and the rank correlations beside it.
function scatter(form) {
  const key = form.dataset.link, kind = form.kind.value, x = form.x.value, y = form.y.value;
  const points = data.links[key].kinds[kind];
  const traces = new Map();
  points.group.forEach((group, i) => {
    const across = points.values[x][i], up = points.values[y][i];
    if (across === null || up === null) return;
    if (!traces.has(group)) {
      const n = traces.size % palette.length;
      traces.set(group, {
        type: "scatter", mode: "markers", name: group, x: [], y: [], text: [],
        hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        marker: { size: 9, opacity: 0.85, color: palette[n], symbol: symbols[n] },
      });
    }
    const trace = traces.get(group);
    trace.x.push(across); trace.y.push(up); trace.text.push(points.name[i]);
  });
  const plot = data.figures[key + "-scatter"][0];
  plot.data = [...traces.values()];
  plot.layout.xaxis.title.text = form.x.selectedOptions[0].text;
  plot.layout.yaxis.title.text = form.y.selectedOptions[0].text;
  plot.layout.xaxis.autorange = plot.layout.yaxis.autorange = true;
  redraw(key + "-scatter");
  correlations(key, kind, x, y, form.querySelector("output"), plot.data.length > 0);
}

function correlations(key, kind, x, y, output, any) {
  const table = document.querySelector(`table[data-correlations="${key}"]`);
  output.textContent = any ? "" : "not measured for these points";
  if (!table) return;
  const all = document.querySelector(`input[data-all="${key}"]`).checked;
  table.classList.toggle("all", all);
  for (const body of table.tBodies) {
    const ours = body.dataset.kind === kind + "s";
    body.hidden = !ours && !all;
    for (const row of body.rows) {
      const chosen = ours && row.dataset.x === x && row.dataset.y === y;
      row.hidden = !all && row.dataset.y !== y;
      row.classList.toggle("chosen", chosen);
      if (chosen) output.textContent = `ρ = ${row.cells[2].textContent} ${row.cells[3].textContent}, by chance ${row.cells[4].textContent}, p = ${row.cells[5].textContent} (of all pairs ${row.cells[6].textContent}), ${row.cells[7].textContent}`;
    }
  }
}

function offer(form) {
  const link = data.links[form.dataset.link];
  for (const kind of Object.keys(link.kinds).sort().reverse()) form.kind.add(new Option(kind + "s", kind));
  for (const axis of ["x", "y"]) for (const [name, label] of link[axis]) form[axis].add(new Option(label, name));
  const ready = form.x.options.length && form.y.options.length;
  if (!ready) return;
  form.addEventListener("change", () => scatter(form));
  document.querySelector(`input[data-all="${form.dataset.link}"]`)?.addEventListener("change", () => scatter(form));
  scatter(form);
}

// Prompts: which colour, which answers.
for (const form of document.querySelectorAll("form[data-prompts]")) {
  const table = document.getElementById(form.dataset.prompts + "-prompt-table");
  form.addEventListener("input", () => {
    for (const name of ["flips", "dla"]) table.classList.toggle("by-" + name, form.colour.value === name);
    const wanted = form.text.value.toLowerCase(), rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const answer = form.outcome.value === "" || row.dataset.outcome === form.outcome.value;
      row.hidden = !answer || !row.textContent.toLowerCase().includes(wanted);
    }
    form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  });
}
// A prompt's button shows its map.
for (const button of document.querySelectorAll("button[data-map]")) {
  button.addEventListener("click", () => {
    const maps = document.getElementById(button.dataset.map), select = maps.querySelector("select");
    if (select) {
      select.value = button.dataset.index;
      select.dispatchEvent(new Event("change"));
      select.focus({ preventScroll: true });
    }
    maps.scrollIntoView({ block: "nearest" });
  });
}

// A token: what both models find likeliest after it, beside its numbers. One box on the page, below the tokens.
const box = Object.assign(document.createElement("div"), { className: "at-token" });
box.setAttribute("role", "status");
function element(name, text, more = {}) { return Object.assign(document.createElement(name), { textContent: text }, more); }

function side(name, flat, words) {
  const table = document.createElement("table");
  table.append(element("caption", name));
  for (let i = 0; i < flat.length; i += 2) {
    const row = table.insertRow(), share = flat[i + 1], word = element("th", words[flat[i]], { scope: "row", className: "token" });
    word.style.setProperty("--share", share);
    row.append(word, element("td", share < 1e-4 ? "< 0.01 %" : (100 * share).toPrecision(3) + " %", { className: "n" }));
  }
  return table;
}

async function tell(token) {
  const text = token.parentElement, all = [...text.children], i = all.indexOf(token);
  document.querySelector(".tokens [aria-selected]")?.removeAttribute("aria-selected");
  for (const other of all) other.tabIndex = other === token ? 0 : -1;
  token.setAttribute("aria-selected", "true");
  await ready;
  if (!token.hasAttribute("aria-selected")) return; // another was chosen meanwhile
  const likely = data.likely[text.dataset.key], both = likely?.at[Number(text.dataset.prompt)]?.[i];
  box.replaceChildren(element("p", `After “${token.textContent}”`));
  if (both) box.append(...["base", "tuned"].map((name, which) => side(name, both[which], likely.words)));
  box.append(element("p", token.title.replace(/^(\w+: )?after it /, ""), { className: "note" }));
  text.after(box);
}

for (const text of document.querySelectorAll(".text[role=listbox]")) {
  text.addEventListener("click", (event) => {
    const token = event.target.closest("[role=option]");
    if (token) { tell(token); token.focus(); }
  });
  text.addEventListener("keydown", (event) => {
    const all = [...text.children], i = all.indexOf(document.activeElement);
    if (i < 0) return;
    if (event.key === "Escape") box.remove();
    const to = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: all.length - 1, Enter: i, " ": i }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = all[Math.max(0, Math.min(all.length - 1, to))];
    next.tabIndex = 0;
    next.focus();
    tell(next);
  });
}

// A cell of a map leads to the prompts that have most of it, and each of them back to the map.
function cellsOf(place) { return place.closest("figure").querySelector(".behind"); }

function offerCells(place) {
  const map = shownPlot(place.id).data[0], figure = place.closest("figure");
  let form = cellsOf(place);
  if (!map?.meta?.behind) return form && (form.hidden = true);
  if (!form) {
    form = element("details", "", { className: "behind" });
    const layer = element("select", "", { name: "layer" }), part = element("select", "", { name: "part" });
    const choice = document.createElement("p");
    choice.append(labelled("layer", layer), " ", labelled("part", part));
    form.append(element("summary", "Prompts behind a cell"), choice, element("ol", ""), element("p", "", { className: "note" }));
    form.addEventListener("change", () => list(place));
    form.addEventListener("toggle", () => form.open && list(place));
    figure.append(form);
  }
  form.hidden = false;
  const [layer, part] = form.querySelectorAll("select"), kept = [layer.value, part.value];
  layer.replaceChildren(...map.y.map((name) => new Option(plain(name), name)).reverse());
  part.replaceChildren(...map.x.map((name) => new Option(plain(name), name)));
  if (map.y.includes(kept[0])) layer.value = kept[0];
  if (map.x.includes(kept[1])) part.value = kept[1];
  if (form.open) list(place);
}

function labelled(name, select) { const label = element("label", name + " "); label.append(select); return label; }
function plain(name) { return new DOMParser().parseFromString(name, "text/html").documentElement.textContent; } // figures hold it escaped

function wordsOf(row) { return [...row.querySelectorAll(".text :not(.template)")].map((token) => token.textContent).join(""); }

function choose(place, row, column) {
  const map = shownPlot(place.id).data[0], form = cellsOf(place);
  if (!map.meta?.behind) return; // of this choice no prompt has a value
  form.querySelector("[name=layer]").value = map.y[row];
  form.querySelector("[name=part]").value = map.x[column];
  form.open = true;
  list(place);
}

function list(place) {
  const map = shownPlot(place.id).data[0], form = cellsOf(place), signed = map.zmin < 0, key = place.id.split("-")[0];
  const y = map.y.indexOf(form.querySelector("[name=layer]").value), x = map.x.indexOf(form.querySelector("[name=part]").value);
  const flat = map.meta.behind[y]?.[x] ?? [], rows = document.getElementById(key + "-prompt-table").tBodies[0].rows;
  const lines = [];
  for (let i = 0; i < flat.length; i += 2) {
    const row = rows[flat[i]], value = Number(flat[i + 1].toPrecision(3)), line = document.createElement("li");
    const link = element("a", row.querySelector("th code").textContent, { href: "#" + row.id });
    link.dataset.from = place.id;
    line.append(link, " " + ((signed && value > 0 ? "+" : "") + value).replace("-", "−"), element("span", " " + wordsOf(row).slice(0, 80), { className: "soft" }));
    lines.push(line);
  }
  form.querySelector("ol").replaceChildren(...lines);
  form.querySelector(".note").textContent = lines.length ? `The largest values${signed ? ", of either sign," : ""} among the ${rows.length} prompts that the page shows.` : "No prompt that the page shows has a value there.";
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-from]");
  if (!link) return;
  const row = document.getElementById(link.hash.slice(1)), place = document.getElementById(link.dataset.from);
  const title = place.getAttribute("aria-label");
  document.querySelectorAll(".prompts .back").forEach((other) => other.remove());
  document.querySelectorAll(".prompts tr.chosen").forEach((other) => other.classList.remove("chosen"));
  row.hidden = false; // the reader's search may have left it out
  row.classList.add("chosen");
  row.cells[0].append(element("a", "back to the map", { href: "#" + place.id, className: "back", title }));
});
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());

// Tabs, one a tuned model. A link into a hidden chapter opens it.
const tabs = [...document.querySelectorAll('[role="tab"]')];
function show(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
}
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    next.focus();
    show(next);
  });
});
function follow() {
  const place = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!place) return;
  const chapter = place.closest("article[hidden]"), fold = place.closest("details") ?? place.querySelector("details");
  if (chapter) show(document.getElementById("tab-" + chapter.id));
  for (let one = fold; one; one = one.parentElement.closest("details")) one.open = true;
  if (chapter || fold) place.scrollIntoView();
}
window.addEventListener("hashchange", follow);
document.addEventListener("click", (event) => { if (event.target.closest('a[href^="#"]')) setTimeout(follow); });
// On a phone a reader opens the sections one by one; on paper all are open, and every figure of theirs is drawn.
const folds = document.querySelectorAll("details.fold");
if (window.matchMedia("(max-width: 760px)").matches) for (const fold of folds) fold.open = false;
window.addEventListener("beforeprint", () => {
  for (const fold of folds) fold.open = true;
  for (const place of document.querySelectorAll(".plot")) if (!drawn.has(place.id)) draw(place.id);
});
// Light or dark: as the system says, until the reader does.
const system = window.matchMedia("(prefers-color-scheme: dark)");
system.addEventListener("change", () => drawn.forEach(draw));
document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  drawn.forEach(draw);
});

// Every figure as PNG, and its numbers as CSV.
function shownPlot(id) { return data.figures[id][Math.min(version[id] || 0, data.figures[id].length - 1)]; }

function numbers(plot) {
  const rows = [["series", "x", "y", "value", "low", "high"]];
  const span = (error, i, at) => (error && error.array ? [at - (error.arrayminus || error.array)[i], at + error.array[i]] : ["", ""]);
  for (const trace of plot.data) {
    if (trace.type === "heatmap") {
      const ratio = trace.colorbar && trace.colorbar.ticktext; // coloured by its logarithm
      trace.y.forEach((y, i) => trace.x.forEach((x, j) => {
        const z = trace.z[i][j];
        rows.push(["", x, y, z === null ? "" : ratio ? 2 ** z : z, "", ""]);
      }));
      continue;
    }
    const x = Array.isArray(trace.x[0]) ? trace.x[0].map((first, i) => `${first} ${trace.x[1][i]}`) : trace.x;
    x.forEach((at, i) => {
      const across = typeof trace.y[i] === "string"; // a category a line: the number lies along x
      const ends = across ? span(trace.error_x, i, at) : span(trace.error_y, i, trace.y[i]);
      rows.push([trace.name || "", across ? "" : at, across ? trace.y[i] : "", across ? at : trace.y[i], ...ends]);
    });
  }
  return rows;
}

function cell(value) {
  if (typeof value === "number" || value === null || value === undefined) return String(value ?? "");
  const name = plain(value);
  const text = /^[=+\-@\t\r]/.test(name) && !Number.isFinite(Number(name)) ? "'" + name : name; // no formula
  return '"' + text.replaceAll('"', '""') + '"';
}

function save(name, url) { Object.assign(document.createElement("a"), { href: url, download: name }).click(); }

for (const button of document.querySelectorAll("button[data-save]")) {
  button.addEventListener("click", async () => {
    await ready;
    const id = button.dataset.of, plot = shownPlot(id);
    if (button.dataset.save === "csv") {
      const text = numbers(plot).map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
      save(id + ".csv", URL.createObjectURL(new Blob([text], { type: "text/csv" })));
      return;
    }
    const place = document.getElementById(id), paper = getComputedStyle(document.body).backgroundColor;
    const size = { width: place.clientWidth, height: place.clientHeight, scale: 2, format: "png" };
    await plotly();
    save(id + ".png", await Plotly.toImage({ data: plot.data, layout: { ...plot.layout, paper_bgcolor: paper } }, size));
  });
}
// Heat maps about a middle: on a dark page the middle is dark as well, and what is far from it bright.
const DARK = [[0, "#7dbcf2"], [0.25, "#35679b"], [0.5, "#23272f"], [0.75, "#99601f"], [1, "#f5ab5b"]];
const light = new WeakMap();
function isDark() { return (document.documentElement.style.colorScheme || (system.matches ? "dark" : "light")) === "dark"; }
function tint(plot) {
  for (const trace of plot.data) {
    if (trace.type !== "heatmap" || !Array.isArray(trace.colorscale)) continue;
    if (!light.has(trace)) light.set(trace, trace.colorscale);
    trace.colorscale = isDark() ? DARK : light.get(trace);
  }
}
const ready = unpack("data").then((text) => {
  data = JSON.parse(text);
  document.querySelectorAll("form[data-link]").forEach(offer);
  for (const place of document.querySelectorAll(".plot")) { offerCells(place); view.observe(place); }
});
ready.catch(() => { document.getElementById("old").hidden = false; });
follow();
