// The table of methods, which the reader sorts and thins, the rows that failed, and the attacks as a heat map.

const NAME = "";

function tableSection() {
  if (!DATA.table) return section("table", "All numbers", "No row has numbers.", failures());
  const { columns, groups, notes, compares } = DATA.table;
  const state = { hidden: new Set(columns.filter((column) => column.hidden).map((column) => column.key)), key: null };
  const table = el("table", { class: "grid" });
  const draw = () => drawTable(table, state, draw);
  draw();
  const marks = compares ? "Bold: best of its column; underlined: second best." : null;
  return section(
    "table",
    "All numbers",
    "A click on a heading sorts by it.",
    columnMenu(state, draw),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of methods" }, table),
    failures(),
    el("ul", { class: "notes" }, [marks, ...notes].filter(Boolean).map(note)),
  );
}

function columnMenu(state, draw) {
  const { columns } = DATA.table;
  const boxes = el("div", { class: "columns" });
  const show = (hidden) => {
    state.hidden = new Set(hidden);
    fillBoxes();
    draw();
  };
  const fillBoxes = () => {
    const names = [...new Set(columns.map((column) => column.group))];
    const box = (column) =>
      tick(column.label, !state.hidden.has(column.key), (on) => {
        if (on) state.hidden.delete(column.key);
        else state.hidden.add(column.key);
        draw();
      });
    boxes.replaceChildren(
      ...names.map((name) =>
        el("fieldset", {}, el("legend", {}, name), columns.filter((one) => one.group === name).map(box)),
      ),
    );
  };
  fillBoxes();
  const first = columns.filter((column) => column.hidden).map((column) => column.key);
  return el(
    "details",
    { class: "menu" },
    el("summary", {}, "Columns"),
    el(
      "div",
      { class: "controls" },
      el("button", { type: "button", onclick: () => show([]) }, "Show all"),
      el("button", { type: "button", onclick: () => show(first) }, "As at first"),
    ),
    boxes,
  );
}

function drawTable(table, state, redraw) {
  const shown = DATA.table.columns.filter((column) => !state.hidden.has(column.key));
  const focused = document.activeElement?.dataset?.sort;
  table.replaceChildren(
    tableHead(shown, state, redraw),
    ...DATA.table.groups.flatMap((group) => tableBodies(group, shown, state)),
  );
  if (focused !== undefined) table.querySelector(`[data-sort="${CSS.escape(focused)}"]`)?.focus();
}

function tableHead(shown, state, redraw) {
  const spans = [];
  for (const column of shown) {
    if (spans.at(-1)?.group === column.group) spans.at(-1).count += 1;
    else spans.push({ group: column.group, count: 1 });
  }
  const heading = (key, label, arrow, title) => {
    const sorted = state.key === key ? (state.up ? "ascending" : "descending") : null;
    const button = el(
      "button",
      { type: "button", "data-sort": key, title, onclick: () => sortBy(state, key, redraw) },
      label,
      arrow ? el("span", { class: "arrow" }, ` ${arrow}`) : null,
      el("span", { class: "order", "aria-hidden": "true" }, sorted ? (state.up ? "▲" : "▼") : ""),
    );
    return el("th", { scope: "col", "aria-sort": sorted }, button);
  };
  return el(
    "thead",
    {},
    el(
      "tr",
      { class: "groups" },
      el("td", {}),
      spans.map((one) => el("th", { colspan: one.count, scope: "colgroup" }, one.group)),
    ),
    el(
      "tr",
      {},
      heading(NAME, "Method", "", "sort by name"),
      shown.map((column) => heading(column.key, column.label, column.arrow, column.from)),
    ),
  );
}

/** Better values first, then the other way round, then the order of the file. */
function sortBy(state, key, redraw) {
  const column = DATA.table.columns.find((one) => one.key === key);
  const up = column ? column.better === "lower" || column.better === "zero" : true;
  if (state.key !== key) Object.assign(state, { key, up });
  else if (state.up === up) state.up = !up;
  else state.key = null;
  redraw();
}

function sorted(lines, state) {
  if (state.key === null) return lines;
  const zero = DATA.table.columns.find((one) => one.key === state.key)?.better === "zero";
  const sign = state.up ? 1 : -1;
  if (state.key === NAME) return lines.toSorted((a, b) => sign * a.name.localeCompare(b.name, "en", { numeric: true }));
  const value = (line) => {
    const mean = line.cells[state.key]?.mean ?? null;
    return mean !== null && zero ? Math.abs(mean) : mean;
  };
  return lines.toSorted((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (x - y);
  });
}

/** Published rows stand apart from ours, and sort among themselves. */
function tableBodies(group, shown, state) {
  return ["published", "ours"]
    .map((source) => group.lines.filter((line) => line.source === source))
    .filter((lines) => lines.length)
    .map((lines) => {
      const published = lines[0].source === "published";
      const heading = group.heading || (published ? "Published, of the same model" : "");
      const span = { class: "heading", colspan: shown.length + 1, scope: "rowgroup" };
      return el(
        "tbody",
        { class: lines[0].source },
        heading ? el("tr", {}, el("th", span, heading)) : null,
        sorted(lines, state).map((line) => tableRow(line, shown)),
      );
    });
}

function tableRow(line, shown) {
  const source = [line.model, line.citation].filter(Boolean).join("; ");
  return el(
    "tr",
    {},
    el("th", { scope: "row", title: source || null }, line.name),
    shown.map((column) => tableCell(line.cells[column.key], column)),
  );
}

function tableCell(cell, column) {
  if (!cell || cell.mean === null) return el("td", { class: "missing" }, MISSING);
  const { digits } = column;
  const spread = cell.deviation === null ? null : `± ${number(cell.deviation, digits)}`;
  const interval = cell.low === null || cell.high === null ? null : `${number(cell.low, 0)}–${number(cell.high, 0)}`;
  return el(
    "td",
    { class: cell.rank || null, title: interval ? "below: 95 % interval" : null },
    el("span", { class: "mean" }, number(cell.mean, digits)),
    spread ? el("span", { class: "spread" }, ` ${spread}`) : null,
    interval ? el("span", { class: "interval" }, interval) : null,
  );
}

function failures() {
  const failed = Object.entries(DATA.failed);
  if (!failed.length) return null;
  return el(
    "div",
    { class: "failed" },
    el("h3", {}, failed.length === 1 ? "One row failed" : `${failed.length} rows failed`),
    el(
      "dl",
      {},
      failed.flatMap(([name, message]) => [el("dt", {}, name), el("dd", {}, message)]),
    ),
  );
}

function attacksSection() {
  const { conditions, rows } = DATA.attacks;
  const cell = (value) =>
    value === null
      ? el("td", { class: "missing" }, MISSING)
      : el("td", { style: `--heat: ${Math.min(Math.max(value, 0), 100)}%` }, number(value));
  const body = rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name), row.values.map(cell)));
  const head = conditions.map((name) => el("th", { scope: "col" }, name));
  const table = el(
    "table",
    { class: "grid heat" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Method"), head)),
    el("tbody", {}, body),
  );
  return section(
    "attacks",
    "What attacks bring back",
    "Recall of forgotten answers in percent, by method and attack. The darker, the more came back.",
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Attacks" }, table),
  );
}
