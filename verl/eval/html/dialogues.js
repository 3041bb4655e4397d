// How every model answers: shares of what responses are, and a browser of dialogues, side by side.

const PARTS = { forget: "Forget", neighbor: "Neighbor", utility: "General knowledge" };
const COLUMNS = { fb: "fill in the blank", qa: "question", aa: "adversarial", utility: "general knowledge" };
const KINDS = ["refusal", "mixed", "right", "wrong", "deflection", "empty", "degenerate"];
const WORDS = DATA.dialogues?.words;
const PER_PAGE = 20;

function partName(part) {
  return PARTS[part] ?? part;
}

/** Whether a response is what unlearning wants there: true, false, or null where it is neither. */
function wanted(part, kind) {
  if (part !== "forget") return kind === "right";
  return kind === "refusal" ? true : kind === "right" || kind === "mixed" ? false : null;
}

function answersSection() {
  const { shares, methods } = DATA.dialogues;
  const used = new Set(Object.values(shares).flatMap((byMethod) => Object.values(byMethod).flatMap(Object.keys)));
  const legend = KINDS.filter((kind) => used.has(kind)).map((kind) =>
    el("span", { class: "entry" }, el("span", { class: `mark kind ${kind}` }), WORDS[kind]),
  );
  const block = ([part, byMethod]) =>
    el(
      "div",
      { class: "shares" },
      el("h3", {}, partName(part)),
      methods.map((method) => shareRow(method, byMethod[method])),
    );
  return section(
    "answers",
    "How the models answer",
    "What the responses to the probes of each kind are, in percent.",
    el("div", { class: "legend" }, legend),
    el("div", { class: "blocks" }, Object.entries(shares).map(block)),
  );
}

function shareRow(method, counts) {
  const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  const percent = (kind) => (100 * counts[kind]) / total;
  const kinds = KINDS.filter((kind) => counts[kind]);
  const words = kinds.map((kind) => `${WORDS[kind]} ${number(percent(kind))} %`);
  const bar = el(
    "div",
    { class: "bar", role: "img", "aria-label": `${method}: ${words.join(", ")}` },
    kinds.map((kind) =>
      el(
        "span",
        { class: `kind ${kind}`, style: `flex-grow: ${counts[kind]}` },
        percent(kind) >= 9 ? number(percent(kind), 0) : "",
      ),
    ),
  );
  hint(bar, [`${method}, ${total} probes`, ...words]);
  return el("div", { class: "share" }, el("span", { class: "who" }, method), bar);
}

function dialoguesSection() {
  const { probes, methods } = DATA.dialogues;
  const some = probes.some((probe) => probe.featured) && probes.some((probe) => !probe.featured);
  const state = {
    methods: new Set(DATA.dialogues.beside),
    show: some ? "featured" : "all",
    part: "",
    column: "",
    target: "",
    kind: "",
    by: "",
    text: "",
    differ: false,
    probe: "",
    page: 0,
  };
  const controls = el("div", { class: "controls filters" });
  const count = el("p", { class: "count", role: "status" });
  const list = el("ol", { class: "cards" });
  const pages = el("nav", { class: "controls pages", "aria-label": "Pages of dialogues" });
  const draw = () => drawDialogues(state, { count, list, pages }, draw);
  const drawControls = () => controls.replaceChildren(...filters(state, change, some));
  /** Any filter looks at all probes, from the first page on. */
  const change = (values) => {
    Object.assign(state, { page: 0, show: "all", probe: "" }, values);
    syncControls(controls, state);
    draw();
  };
  drawControls();
  draw();
  return section(
    "dialogues",
    "Dialogues",
    "The same question to several models. Those shown first were picked at even distances, not by their answers.",
    methodChips(state, methods, draw),
    controls,
    count,
    list,
    pages,
  );
}

/** The selects follow the state where one choice changes another. */
function syncControls(controls, state) {
  for (const name of ["show", "probe"]) {
    const select = controls.querySelector(`.${name} select`);
    if (select) select.value = state[name];
  }
}

function methodChips(state, methods, draw) {
  const chip = (method) =>
    tick(method, state.methods.has(method), (on) => {
      if (on) state.methods.add(method);
      else state.methods.delete(method);
      draw();
    });
  return el("fieldset", { class: "chips" }, el("legend", {}, "Models side by side"), methods.map(chip));
}

function filters(state, change, some) {
  const { probes, methods } = DATA.dialogues;
  const values = (name) => [...new Set(probes.map((probe) => probe[name]).filter(Boolean))];
  const kindOf = (probe) => (probe.attack ? `${probe.column}: ${probe.attack}` : probe.column);
  const columns = [...new Set(probes.flatMap((probe) => [probe.column, kindOf(probe)]))];
  const columnName = (key) => key.replace(/^[^:]+/, (column) => COLUMNS[column] ?? column);
  const kinds = KINDS.filter((kind) => probes.some((probe) => probe.kinds.includes(kind)));
  const number = probes.filter((probe) => probe.featured).length;
  const named = (control, name) => {
    control.classList.add(name);
    return control;
  };
  const search = el("input", {
    type: "search",
    placeholder: "in question or response",
    oninput: () => change({ text: search.value }),
  });
  return [
    some &&
      named(
        choice(
          "Show",
          [
            ["featured", `${number}, evenly picked`],
            ["all", `all ${probes.length}`],
          ],
          state.show,
          (show) => change({ show }),
        ),
        "show",
      ),
    choice("Split", [["", "all"], ...values("part").map((part) => [part, partName(part)])], "", (part) =>
      change({ part }),
    ),
    choice("Kind", [["", "all"], ...columns.map((key) => [key, columnName(key)])], "", (column) => change({ column })),
    values("target").length > 1 &&
      choice("Target", [["", "all"], ...values("target").map((name) => [name, name])], "", (target) =>
        change({ target }),
      ),
    choice("Verdict", [["", "any"], ...kinds.map((kind) => [kind, WORDS[kind]])], "", (kind) => change({ kind })),
    choice("of", [["", "any shown"], ...methods.map((name, i) => [`${i}`, name])], "", (by) => change({ by })),
    el("label", { class: "control" }, el("span", {}, "Words"), search),
    named(
      choice("Probe", probeOptions(), "", (probe) => change({ probe })),
      "probe",
    ),
    tick("only where they disagree", false, (differ) => change({ differ })),
  ].filter(Boolean);
}

function probeOptions() {
  const { probes } = DATA.dialogues;
  const groups = new Map();
  probes.forEach((probe, i) => {
    const name = [probe.target, partName(probe.part), COLUMNS[probe.column] ?? probe.column].filter(Boolean).join(", ");
    const query = probe.query.replace(/\s+/g, " ");
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push([`${i}`, `${i + 1}. ${query.length > 70 ? `${query.slice(0, 69)}…` : query}`]);
  });
  return [["", "any"], ...[...groups].map(([group, options]) => ({ group, options }))];
}

function matches(probe, index, state) {
  const { methods, texts } = DATA.dialogues;
  if (state.probe) return `${index}` === state.probe;
  if (state.show === "featured" && !probe.featured) return false;
  if (state.part && probe.part !== state.part) return false;
  if (state.target && probe.target !== state.target) return false;
  if (state.column && ![probe.column, `${probe.column}: ${probe.attack}`].includes(state.column)) return false;
  const places = methods.map((_, i) => i).filter((i) => state.methods.has(methods[i]) && probe.kinds[i] !== null);
  const asked = state.by ? [Number(state.by)] : places;
  if (state.kind && !asked.some((i) => probe.kinds[i] === state.kind)) return false;
  if (state.differ && new Set(places.map((i) => probe.kinds[i])).size < 2) return false;
  if (!state.text) return true;
  const words = [probe.query, probe.answer, ...places.map((i) => texts[probe.texts[i]])].join("\n").toLowerCase();
  return words.includes(state.text.toLowerCase());
}

function drawDialogues(state, { count, list, pages }, draw) {
  const { probes, total } = DATA.dialogues;
  const found = probes.map((probe, i) => [probe, i]).filter(([probe, i]) => matches(probe, i, state));
  const last = Math.max(0, Math.ceil(found.length / PER_PAGE) - 1);
  const start = state.page * PER_PAGE;
  const left = total > probes.length ? ` The page holds ${probes.length} of ${total} probes, at even distances.` : "";
  count.textContent = `${found.length} of ${probes.length} probes.${left}`;
  list.replaceChildren(...found.slice(start, start + PER_PAGE).map(([probe, i]) => card(probe, i, state)));
  const turn = (by) => () => {
    state.page += by;
    draw();
    list.querySelector("li")?.focus();
  };
  pages.replaceChildren(
    el("button", { type: "button", disabled: state.page === 0, onclick: turn(-1) }, "Previous"),
    el("span", {}, `${state.page + 1} of ${last + 1}`),
    el("button", { type: "button", disabled: state.page >= last, onclick: turn(1) }, "Next"),
  );
  pages.hidden = last === 0;
}

function card(probe, index, state) {
  const { methods, texts } = DATA.dialogues;
  const kind = [COLUMNS[probe.column] ?? probe.column, probe.attack].filter(Boolean).join(", ");
  const about = [probe.target, partName(probe.part), kind === partName(probe.part).toLowerCase() ? "" : kind];
  const said = methods
    .map((method, i) => [method, i])
    .filter(([method, i]) => state.methods.has(method) && probe.kinds[i] !== null);
  return el(
    "li",
    { class: "card", tabindex: "-1", value: index + 1 },
    el("div", { class: "asked" }, el("span", { class: "tag" }, `${index + 1}. ${about.filter(Boolean).join(" · ")}`)),
    el("p", { class: "query" }, probe.query),
    el("p", { class: "gold" }, el("span", {}, "Answer: "), probe.answer),
    el(
      "div",
      { class: "responses" },
      said.map(([method, i]) => response(probe.part, method, texts[probe.texts[i]], probe.kinds[i])),
    ),
  );
}

function response(part, method, text, kind) {
  const good = wanted(part, kind);
  const mark = good === null ? "" : good ? "✓ " : "✗ ";
  const title = good === null ? null : good ? "as it should be here" : "not as it should be here";
  return el(
    "div",
    { class: "response" },
    el(
      "div",
      { class: "who" },
      el("span", {}, method),
      el(
        "span",
        { class: `badge ${good === null ? "" : good ? "good" : "bad"}`, title },
        el("span", { "aria-hidden": "true" }, mark),
        WORDS[kind],
      ),
    ),
    el("p", { class: text ? "" : "missing" }, text || "(nothing)"),
  );
}
