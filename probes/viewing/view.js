// Both models, live. `ask` sends a request to Python and gives its reply: by fetch, or by a notebook's messages.
// What models and prompts say is set as text, never as markup.

function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name === "value") made.value = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

// Work that is done once at a time; of the calls that come meanwhile only the last is done.
function latest(work) {
  let busy = false, next = null;
  return async (...args) => {
    next = args;
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const now = next;
        next = null;
        await work(...now);
      }
    } finally {
      busy = false;
    }
  };
}

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
const percent = (p) => `${(100 * p).toFixed(1)} %`;
const number = (x) => (x === null ? "–" : x === 0 ? "0" : x < 0.001 ? "<0.001" : String(Number(x.toPrecision(2))));
const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
const heat = (share) => ({ "--share": Math.min(1, Math.max(0, share || 0)).toFixed(3) });

async function mount(root, ask, { reports = false } = {}) {
  root.classList.add("tuning-view");
  const said = h("p", { class: "said", role: "status" });
  root.replaceChildren(h("h1", {}, "Both models, live"), said);
  const opened = await ask({ do: "open" });
  if (opened.error) return say(said, opened.error, true);

  const shared = {
    asked: false,
    prompt: h("textarea", { rows: 3, spellcheck: "false", placeholder: "Type a prompt, or choose one of the run" }),
    form: h("select"),
    tokens: h("input", { type: "number", min: 1, max: 200, value: 24 }),
  };
  const examples = h("select", { onchange: () => take(examples.value) });
  const panes = h("div", { class: "panes" });
  const all = [];
  const session = `${Date.now()}-${Math.random()}`;
  let offered = [];

  function take(index) {
    const chosen = offered[index];
    if (!chosen) return;
    shared.prompt.value = chosen.text;
    shared.form.value = chosen.form;
    askAll();
  }

  function offer({ prompts, forms }) {
    const form = shared.form.value;
    offered = prompts;
    examples.replaceChildren(
      h("option", { value: "" }, "a prompt of the run…"),
      ...prompts.map((one, i) => h("option", { value: i }, `${one.domain}: ${one.text.replace(/\s+/g, " ").slice(0, 80)}`)),
    );
    shared.form.replaceChildren(...forms.map((name) => h("option", { value: name }, name)));
    if (forms.includes(form)) shared.form.value = form;
    written.hidden = forms.length < 2;
  }

  function askAll() {
    shared.asked = true;
    all.forEach((one) => one.answer());
  }

  function add() {
    const next = all.length ? all[all.length - 1].following() : { run: 0, tuned: opened.runs[0].tuned[0] };
    const number = all.length;
    const made = pane({
      id: `${session}-${number}`, number, runs: opened.runs, shared, ask, said, reports,
      loaded: (info) => number === 0 && offer(info),
      closed: () => {
        all.splice(all.indexOf(made), 1);
        made.root.remove();
        more.disabled = false;
        panes.classList.toggle("two", all.length > 1);
      },
    });
    all.push(made);
    panes.append(made.root);
    panes.classList.toggle("two", all.length > 1);
    more.disabled = all.length > 1;
    return made.choose(next.run, next.tuned);
  }

  const written = h("label", {}, "format ", shared.form);
  const more = h("button", { type: "button", onclick: add }, "Another model side by side");
  const form = h(
    "form",
    { class: "prompt", onsubmit: (event) => { event.preventDefault(); askAll(); } },
    h("label", { class: "wide" }, "Prompt", shared.prompt),
    h("div", { class: "row" },
      h("label", {}, "or choose ", examples), written, h("label", {}, "answer up to ", shared.tokens, " tokens"),
      h("button", { class: "main" }, "Ask both models"), more),
  );
  shared.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  root.replaceChildren(h("h1", {}, "Both models, live"), form, said, panes);
  await add();
}

function say(place, text, wrong = false) {
  place.textContent = text;
  place.classList.toggle("wrong", wrong);
}

// One tuned model beside its base: tabs, answers, tokens, one token, and the mix.
function pane({ id, number: place, runs, shared, ask, said, reports, loaded, closed }) {
  const state = { run: 0, tuned: "", info: null, scales: {}, answer: null, pos: null };
  const pairs = runs.flatMap((run, index) => run.tuned.map((tuned) => ({ run: index, tuned })));
  const several = new Set(runs.map((run) => run.name)).size < runs.length;
  const title = ({ run, tuned }) => (runs.length > 1 ? `${several ? runs[run].path : runs[run].name}: ${tuned}` : tuned);
  const tabs = h("div", { role: "tablist", "aria-label": "Tuned models" });
  const source = h("p", { class: "note" });
  const frame = h("div", { class: "report" });
  const answers = h("div", { class: "answers" }), strip = h("div"), detail = h("div"), mix = h("div", { class: "mix" });
  const label = (model) => ({ base: "base", tuned: state.tuned, mixed: "mix" })[model];

  async function send(request, waiting, done) {
    say(said, waiting);
    const { run, tuned } = state;
    const reply = await ask({ run, tuned, pane: id, ...request });
    if (reply.overtaken || run !== state.run || tuned !== state.tuned) return null;
    if (reply.error) {
      say(said, reply.error, true);
      return null;
    }
    say(said, `${done} in ${reply.seconds.toFixed(1)} s.`);
    return reply;
  }

  const answer = latest(async () => {
    if (!state.info || !shared.asked) return;
    const follow = Object.keys(state.scales).length && state.follow === "mixed" ? "mixed" : state.follow ?? "tuned";
    const reply = await send(
      {
        do: "answer", prompt: shared.prompt.value, form: shared.form.value, tokens: Number(shared.tokens.value) || 24,
        follow, scales: state.scales,
      },
      "The models answer…", "Answered",
    );
    if (!reply) return;
    state.answer = reply;
    showAnswers();
    showStrip();
    if (state.pos === null || state.pos >= reply.ids.length) state.pos = reply.n_text - 1;
    await token(state.pos);
  });

  const token = latest(async (pos) => {
    state.pos = pos;
    for (const one of strip.querySelectorAll("button.token")) one.setAttribute("aria-pressed", Number(one.dataset.pos) === pos);
    const reply = await send({ do: "token", ids: state.answer.ids, pos, scales: state.scales }, "The models read up to this token…", "Read");
    if (reply) showDetail(reply);
  });

  function showTabs() {
    tabs.replaceChildren(...pairs.map((one) => {
      const chosen = one.run === state.run && one.tuned === state.tuned;
      return h("button", {
        type: "button", role: "tab", "aria-selected": String(chosen), onclick: () => choose(one.run, one.tuned),
      }, title(one));
    }));
    const { path, sources } = runs[state.run];
    source.replaceChildren(`base ${sources.base}, ${state.tuned} ${sources[state.tuned]} `);
    if (reports) source.append(h("button", { type: "button", onclick: showReport }, `Report of ${path}`));
    if (place) source.append(" ", h("button", { type: "button", onclick: closed }, "Close"));
  }

  async function showReport() {
    if (frame.firstChild) return frame.replaceChildren();
    const { address, error } = await ask({ do: "report", run: state.run });
    if (error) return say(said, error, true);
    frame.replaceChildren(h("iframe", { src: address, title: "The run's report", sandbox: "allow-scripts allow-downloads" }));
  }

  function showAnswers() {
    const { answers: found } = state.answer;
    const first = found.tuned.differs;
    answers.replaceChildren(...Object.entries(found).map(([model, one]) => {
      const at = model === "base" ? first : one.differs;
      const spans = one.tokens.map((text, i) => h(i === at ? "mark" : "span", {}, text));
      if (at !== null && at >= one.tokens.length) spans.push(h("mark", {}, "(ends)"));
      const end = one.ended ? "ends by itself" : `cut after ${one.tokens.length} tokens`;
      const same = model === "base" ? "" : at === null ? "the base's answer; " : `first difference: token ${at + 1}; `;
      return h("div", { class: "answer", "data-model": model },
        h("h3", {}, label(model)), h("p", { class: "text" }, spans), h("p", { class: "note" }, same + end));
    }));
  }

  function showStrip() {
    const { kl, tokens, n_text: n, answers: found } = state.answer;
    const most = Math.max(...Object.values(kl).flat(), 1e-9);
    const floor = state.info.floors.kl;
    const follow = h("select", { onchange: () => { state.follow = follow.value; answer(); } },
      ...Object.keys(found).map((model) => h("option", { value: model }, label(model))));
    follow.value = state.follow in found ? state.follow : "tuned";
    const lines = Object.entries(kl).map(([model, values]) => h("div", { class: "strip", "data-model": model },
      h("h3", {}, `KL(base ‖ ${label(model)}) after every token, nats`),
      h("p", { class: "note" },
        `mean ${number(mean(values.slice(0, n - 1)))} inside the prompt, ${number(mean(values.slice(n - 1)))} from its end on; ` +
        (floor === null ? "this run has no noise floor"
          : `rounding alone: ${number(floor)} at this run's answers`)),
      h("div", { class: "tokens" }, tokens.map((text, pos) => h("button", {
        type: "button", class: pos < n ? "token" : "token answered", "data-pos": pos, "aria-pressed": "false",
        title: `token ${pos}: what follows it`, ...heat(Math.sqrt(values[pos] / most)), onclick: () => token(pos),
      }, h("span", {}, visible(text)), h("small", {}, number(values[pos])))))));
    strip.replaceChildren(
      h("p", { class: "row" }, h("label", {}, "Both models read the prompt and the answer of ", follow)), ...lines);
  }

  function showDetail({ pos, top, lens, lens_kl: apart, changes }) {
    const models = Object.keys(top), others = Object.keys(changes);
    const cell = ({ token: text, prob }) => h("td", {}, h("code", {}, visible(text)), ` ${percent(prob)}`);
    const rows = (n, row) => Array.from({ length: n }, (_, i) => h("tr", {}, row(i)));
    const floor = state.info.floors.change;
    detail.replaceChildren(
      h("h2", {}, "After ", h("code", {}, visible(state.answer.tokens[pos])), ` (token ${pos})`),
      h("div", { class: "tables" },
        table("The likeliest next tokens", "", ["", ...models.map(label)],
          rows(top.base.length, (i) => [h("th", {}, String(i + 1)), ...models.map((model) => cell(top[model][i]))])),
        table("Logit lens", "the residual stream behind every block, read as a prediction; KL(base ‖ …) in nats",
          ["layer", ...models.map(label), ...others.map((model) => `KL ${label(model)}`)],
          rows(lens.base.length, (i) => [
            h("th", {}, String(i)), ...models.map((model) => cell(lens[model][i])),
            ...others.map((model) => h("td", { class: "n" }, number(apart[model][i]))),
          ])),
        ...others.map((model) => changeTable(model, changes[model], floor))),
    );
  }

  function changeTable(model, changes, floor) {
    const names = [...new Set(changes.filter((one) => one.layer >= 0).map((one) => one.component))];
    const layers = [...new Set(changes.map((one) => one.layer))].sort((a, b) => a - b);
    const at = (layer, name) => changes.find((one) => one.layer === layer && (layer < 0 || one.component === name));
    const cell = (one, span = 1) => h("td", { class: "n heat", colspan: span, ...heat(one?.change) },
      one ? (one.layer < 0 ? `${one.component} ` : "") + number(one.change) : "");
    return table(`How ${label(model)} differs in what each component adds`,
      "‖Δ‖ / ‖base’s‖ at this token" + (floor === null ? "" : `; rounding alone: up to ${number(floor)} on this run's prompts`),
      ["layer", ...names],
      layers.map((layer) => h("tr", {}, h("th", {}, layer < 0 ? "–" : String(layer)),
        layer < 0 ? cell(at(layer), names.length) : names.map((name) => cell(at(layer, name))))));
  }

  function showMix() {
    const { components } = state.info;
    const sliders = [];
    const set = (value, which = () => true) => {
      for (const one of sliders) if (which(one)) one.show(value);
      answer();
    };
    const slider = (name) => {
      const value = h("output", {}, "0");
      const input = h("input", { type: "range", min: -1, max: 2, step: 0.1, value: 0, "aria-label": `λ of ${name}` });
      const show = (to) => {
        input.value = to;
        value.textContent = String(Number(to));
        if (Number(to)) state.scales[name] = Number(to);
        else delete state.scales[name];
      };
      input.addEventListener("input", () => { show(input.value); answer(); });
      sliders.push({ name, show });
      return h("label", { class: "slider", "data-component": name }, h("span", {}, name), input, value);
    };
    const whole = h("input", { type: "range", min: -1, max: 2, step: 0.1, value: 0, "aria-label": "λ of every component" });
    whole.addEventListener("input", () => set(whole.value));
    const button = (text, value) => h("button", { type: "button", onclick: () => { whole.value = value; set(value); } }, text);
    mix.replaceChildren(
      h("h2", {}, "Mix: base + λ × change"),
      h("p", { class: "note" }, "λ scales what tuning changed in each component: 0 is the base, 1 the tuned model. The answer and the KL update."),
      h("p", { class: "row" }, h("label", { class: "slider" }, h("span", {}, "all"), whole), button("all 0: base", 0), button("all 1: tuned", 1)),
      h("div", { class: "sliders" }, components.map((one) => slider(one.name))),
    );
  }

  async function choose(run, tuned) {
    Object.assign(state, { run, tuned, info: null, scales: {}, pos: null, answer: null });
    showTabs();
    [frame, answers, strip, detail, mix].forEach((part) => part.replaceChildren());
    const info = await send({ do: "load" }, `Loading base and ${tuned}…`, "Loaded");
    if (!info) return;
    state.info = info;
    loaded(info);
    showMix();
    await answer();
  }

  const root = h("section", { class: "pane" }, tabs, source, frame,
    h("div", { class: "body" }, answers, strip, mix, detail));
  const following = () => pairs[(pairs.findIndex((one) => one.run === state.run && one.tuned === state.tuned) + 1) % pairs.length];
  return { root, choose, answer, following };
}

function table(title, note, headings, rows) {
  return h("div", { class: "table" }, h("h3", {}, title), note ? h("p", { class: "note" }, note) : null,
    h("div", { class: "scroll", tabindex: 0 }, h("table", {},
      h("thead", {}, h("tr", {}, headings.map((heading) => h("th", { scope: "col" }, heading)))), h("tbody", {}, rows))));
}
