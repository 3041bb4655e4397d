// Inline SVG: the Pareto plot with every try, and the curves of each run.

const MARGIN = { left: 52, right: 18, top: 16, bottom: 46 };
const COLORS = 7;

/** Linear scales and a frame with ticks, grid and axis titles for a plot of the given size. */
function axes(width, height, xs, ys, xTitle, yTitle) {
  const [left, right] = [yTitle ? MARGIN.left : MARGIN.left - 16, width - MARGIN.right];
  const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
  const x = (value) => left + ((value - xs[0]) / (xs[1] - xs[0])) * (right - left);
  const y = (value) => bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (bottom - top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
  for (const value of ticks(xs[0], xs[1], width / 70)) {
    root.append(svg("line", { class: "rule", x1: x(value), x2: x(value), y1: top, y2: bottom }));
    root.append(svg("text", { class: "tickmark", x: x(value), y: bottom + 17, "text-anchor": "middle" }, `${value}`));
  }
  for (const value of ticks(ys[0], ys[1], height / 60)) {
    root.append(svg("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
    root.append(svg("text", { class: "tickmark", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, `${value}`));
  }
  root.append(svg("text", { class: "axis", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xTitle));
  if (!yTitle) return { root, x, y, left, right, top, bottom };
  const turned = `rotate(-90 14 ${(top + bottom) / 2})`;
  root.append(
    svg("text", { class: "axis", x: 14, y: (top + bottom) / 2, transform: turned, "text-anchor": "middle" }, yTitle),
  );
  return { root, x, y, left, right, top, bottom };
}

const PLANES = {
  forget: "forget: knowledge left, %  (lower is better)",
  recovered: "recovered: most that an attack brings back, %  (lower is better)",
};

function paretoSection() {
  const drawable = (plane) => DATA.dots.filter((dot) => dot[plane] !== null && dot.neighbor !== null);
  const planes = Object.keys(PLANES).filter((plane) => drawable(plane).length);
  const frame = el("div", { class: "plot" });
  let [plane, width] = [planes[0], 0];
  const draw = () => frame.replaceChildren(drawPareto(width, plane, drawable(plane)));
  drawn(frame, (now) => {
    width = now;
    draw();
  });
  const radio = (name) =>
    el(
      "label",
      { class: "tick" },
      el("input", {
        type: "radio",
        name: "plane",
        value: name,
        checked: name === plane,
        onchange: () => {
          plane = name;
          draw();
        },
      }),
      el("span", {}, name === "forget" ? "Forget against neighbor" : "Most recovered against neighbor"),
    );
  const grey = DATA.dots.some((dot) => !dot.chosen);
  return section(
    "pareto",
    "Forgetting against keeping",
    `The ideal is the upper left corner. ${grey ? "Every try is a dot, grey unless it was chosen. " : ""}` +
      "Point at a dot, or move to it with the tab and arrow keys, for its numbers.",
    planes.length > 1
      ? el("div", { class: "controls", role: "radiogroup", "aria-label": "Axes" }, planes.map(radio))
      : null,
    planes.length ? el("figure", {}, frame, paretoLegend()) : null,
    grey ? triesTable() : null,
  );
}

function paretoLegend() {
  const entry = (mark, text) => el("span", { class: "entry" }, el("span", { class: `mark ${mark}` }), text);
  return el(
    "figcaption",
    { class: "legend" },
    DATA.dots.some((dot) => dot.chosen && dot.source === "ours") ? entry("chosen", "shown in the table") : null,
    DATA.dots.some((dot) => !dot.chosen) ? entry("try", "other tries") : null,
    DATA.dots.some((dot) => dot.measured_on === "validation") ? entry("hollow", "measured on validation rows") : null,
    DATA.dots.some((dot) => dot.source === "published") ? entry("square", "published") : null,
    DATA.trails.map((trail) => entry("dash", trail.label)),
  );
}

function drawPareto(width, plane, dots) {
  const height = Math.round(Math.min(Math.max(width * 0.6, 300), 520));
  const trails = plane === "forget" ? DATA.trails : [];
  const seen = [
    ...dots.map((dot) => [dot[plane], dot.neighbor]),
    ...trails.flatMap((t) => t.points.map((p) => p.slice(1))),
  ];
  const right = Math.max(10, ...seen.map((point) => point[0]));
  const low = Math.min(90, ...seen.map((point) => point[1]));
  const high = 100 + 0.05 * (100 - low);
  const xs = [-0.04 * right, 1.05 * right];
  const plot = axes(
    width,
    height,
    xs,
    [low - 0.07 * (100 - low), high],
    PLANES[plane],
    "neighbor: knowledge kept, %  (higher is better)",
  );
  plot.root.append(svg("text", { class: "ideal", x: plot.x(0), y: plot.y(100) + 7, "text-anchor": "middle" }, "★"));
  const chosen = dots.filter((dot) => dot.chosen);
  plot.root.append(
    frontLine(
      plot,
      plane,
      chosen.filter((dot) => dot.source === "ours"),
    ),
  );
  trails.forEach((trail) => plot.root.append(trailLine(plot, trail)));
  const methods = [...new Set(DATA.dots.filter((dot) => dot.chosen && dot.source === "ours").map((dot) => dot.method))];
  const marks = dots.toSorted((a, b) => a.chosen - b.chosen).map((dot) => [dot, dotMark(plot, plane, dot, methods)]);
  for (const [dot, mark] of marks) {
    const others = marks.filter(([other]) => other.method !== dot.method).map(([, node]) => node);
    const dim = (on) => () => others.forEach((node) => node.classList.toggle("dim", on));
    hint(mark, dotLines(dot), dim(true), dim(false));
    plot.root.append(mark);
  }
  rove(marks.map(([, mark]) => mark));
  labelDots(plot, plane, chosen);
  plot.root.setAttribute("role", "group");
  plot.root.setAttribute("aria-label", "Pareto plot");
  return plot.root;
}

/** One stop of the tab key for all of them; the arrow keys go from one to the next, in the order of the page. */
function rove(nodes) {
  nodes.forEach((node, i) => {
    node.setAttribute("tabindex", i === nodes.length - 1 ? "0" : "-1");
    node.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      nodes[(i + move + nodes.length) % nodes.length].focus();
    });
  });
}

/** The stairs below which lie the points that no shown method beats on both axes. */
function frontLine(plot, plane, dots) {
  const points = dots.map((dot) => [dot[plane], dot.neighbor]).toSorted((a, b) => a[0] - b[0] || b[1] - a[1]);
  let path = "";
  let best = -Infinity;
  for (const [x, y] of points) {
    if (y <= best) continue;
    path += path ? `H${plot.x(x)}V${plot.y(y)}` : `M${plot.x(x)},${plot.bottom}V${plot.y(y)}`;
    best = y;
  }
  return svg("path", { class: "front", d: path && `${path}H${plot.right}` });
}

function trailLine(plot, trail) {
  const group = svg("g", { class: "trail" });
  const places = trail.points.map(([, x, y]) => `${plot.x(x)},${plot.y(y)}`);
  group.append(svg("polyline", { points: places.join(" ") }));
  for (const [step, x, y] of trail.points) {
    const mark = svg("circle", { cx: plot.x(x), cy: plot.y(y), r: 3 });
    hint(mark, [`${trail.label}, step ${step}`, `forget ${number(x)}, neighbor ${number(y)}`]);
    group.append(mark);
  }
  return group;
}

function dotMark(plot, plane, dot, methods) {
  const [x, y] = [plot.x(dot[plane]), plot.y(dot.neighbor)];
  const few = methods.length <= COLORS && methods.includes(dot.method);
  const color = dot.chosen && dot.source === "ours" ? (few ? methods.indexOf(dot.method) : 2) : null;
  const kinds = ["dot", dot.chosen ? "chosen" : "try", dot.measured_on === "validation" && "hollow", dot.source];
  const shape =
    dot.source === "published"
      ? svg("rect", { x: x - 5, y: y - 5, width: 10, height: 10 })
      : svg("circle", { cx: x, cy: y, r: dot.chosen ? 7 : 4.5 });
  const line = (ends, along) => {
    if (!ends || dot[plane] !== dot.forget) return null;
    const clip = along ? [plot.left, plot.right] : [plot.top, plot.bottom];
    const [a, b] = ends.map(along ? plot.x : plot.y).map((end) => Math.min(Math.max(end, clip[0]), clip[1]));
    return svg("line", along ? { x1: a, x2: b, y1: y, y2: y } : { x1: x, x2: x, y1: a, y2: b });
  };
  const lines = [line(dot.forget_interval, true), line(dot.neighbor_interval, false)];
  const style = color === null ? null : `--own: var(--c${color})`;
  const label = dotLines(dot).join(", ");
  return svg("g", { class: kinds.filter(Boolean).join(" "), style, role: "img", "aria-label": label }, lines, shape);
}

/** Scores are fractions or percent, as their method's choice goes by. */
function scoreOf(dot) {
  return dot.score === null ? MISSING : `${+dot.score.toPrecision(4)}`;
}

function dotLines(dot) {
  const names = { forget: "forget", neighbor: "neighbor", recovered: "most recovered", score: "validation score" };
  const numbers = Object.entries(names).filter(([key]) => dot[key] !== null);
  return [
    dot.method,
    ...(dot.settings ? [dot.settings] : []),
    ...numbers.map(([key, name]) => `${name} ${key === "score" ? scoreOf(dot) : number(dot[key])}`),
    ...Object.entries(dot.more).map(([name, value]) => `${name} ${value}`),
    ...(dot.measured_on === "validation" ? ["measured on validation rows"] : []),
    ...(dot.chosen ? [] : ["not chosen"]),
  ];
}

/** Names beside the chosen dots where there is room; a dot without a name still has its hover text. */
function labelDots(plot, plane, dots) {
  const place = (dot) => [plot.x(dot[plane]), plot.y(dot.neighbor)];
  const taken = dots.map(place).map(([x, y]) => [x - 8, y - 8, x + 8, y + 8]);
  const free = ([a, b, c, d]) =>
    a > plot.left - 4 &&
    c < plot.right + 14 &&
    b > 0 &&
    d < plot.bottom &&
    taken.every(([e, f, g, h]) => c <= e || g <= a || d <= f || h <= b);
  const rows = [0, 14, -14, 28, -28, 42, -42, 56];
  for (const dot of dots) {
    const [x, y] = place(dot);
    const width = 6.9 * dot.method.length + 4;
    const boxes = rows.flatMap((down) => [
      [x + 11, y + down - 8, x + 11 + width, y + down + 7],
      [x - 11 - width, y + down - 8, x - 11, y + down + 7],
    ]);
    const box = boxes.find(free);
    if (!box) continue;
    taken.push(box);
    const onRight = box[0] > x;
    const text = {
      class: "name",
      x: onRight ? box[0] : box[2],
      y: box[1] + 12,
      "text-anchor": onRight ? "start" : "end",
    };
    if (Math.abs(box[1] + 8 - y) > 1) {
      plot.root.append(
        svg("line", { class: "tie", x1: x, y1: y, x2: onRight ? box[0] - 2 : box[2] + 2, y2: box[1] + 8 }),
      );
    }
    plot.root.append(svg("text", text, dot.method));
  }
}

function triesTable() {
  const head = ["Method", "Settings", "Validation score", "Forget", "Neighbor", "Most recovered", "On", "Chosen"];
  const row = (dot) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, dot.method),
      el("td", { class: "words" }, dot.settings),
      el("td", {}, scoreOf(dot)),
      [dot.forget, dot.neighbor, dot.recovered].map((value) => el("td", {}, number(value))),
      el("td", { class: "words" }, dot.measured_on),
      el("td", { class: "words" }, dot.chosen ? "yes" : ""),
    );
  const dots = DATA.dots.filter((dot) => dot.source === "ours");
  const table = el(
    "table",
    { class: "grid" },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        head.map((name) => el("th", { scope: "col" }, name)),
      ),
    ),
    el("tbody", {}, dots.map(row)),
  );
  return el(
    "details",
    { class: "menu" },
    el("summary", {}, `The ${dots.length} dots as a table`),
    el("div", { class: "scroll" }, table),
  );
}

function curvesSection() {
  const { runs } = DATA;
  const frame = el("div", {});
  const show = (shown) => frame.replaceChildren(...shown.map(runFigure));
  const few = runs.length <= 3;
  show(few ? runs : runs.slice(0, 1));
  const names = runs.map((run, i) => [`${i}`, run.name]);
  return section(
    "curves",
    "Training",
    "",
    few
      ? null
      : el(
          "div",
          { class: "controls" },
          choice("Run", names, "0", (value) => show([runs[value]])),
        ),
    frame,
  );
}

function runFigure(run) {
  return el(
    "div",
    { class: "run" },
    el("h3", {}, run.name),
    el("div", { class: "panels" }, run.panels.map(panelFigure)),
  );
}

function panelFigure(panel) {
  const frame = el("div", { class: "plot" });
  drawn(frame, (width) => frame.replaceChildren(drawPanel(panel, width)));
  const entry = (curve) =>
    el(
      "span",
      { class: "entry" },
      el("span", { class: `mark line${curve.dotted ? " dots" : ""}`, style: `--own: var(--c${curve.color})` }),
      curve.label,
    );
  return el(
    "figure",
    {},
    el("h4", {}, panel.title, el("span", {}, panel.unit)),
    frame,
    el("figcaption", { class: "legend" }, panel.curves.map(entry)),
  );
}

function drawPanel(panel, width) {
  const points = panel.curves.flatMap((curve) => curve.points);
  const steps = [...new Set(points.map((point) => point[0]))].toSorted((a, b) => a - b);
  const values = points.map((point) => point[1]);
  const [low, high] = panel.limits ?? [Math.min(0, ...values), Math.max(...values)];
  const room = 0.06 * (high - low || 1);
  const xs = steps.length > 1 ? [steps[0], steps.at(-1)] : [steps[0] - 1, steps[0] + 1];
  const plot = axes(width, 210, xs, [low, high + (panel.limits ? 0 : room)], "step", "");
  for (const curve of panel.curves) {
    const places = curve.points.map(([step, value]) => [plot.x(step), plot.y(value)]);
    const style = `--own: var(--c${curve.color})`;
    plot.root.append(
      svg("polyline", { class: curve.dotted ? "curve dots" : "curve", style, points: places.join(" ") }),
    );
    if (curve.dotted || places.length === 1) {
      places.forEach(([cx, cy]) => plot.root.append(svg("circle", { class: "curvemark", style, cx, cy, r: 3 })));
    }
  }
  readOut(panel, plot, steps);
  return plot.root;
}

/** A line at the step under the pointer, or moved by the arrow keys, with every curve's value there. */
function readOut(panel, plot, steps) {
  const line = svg("line", { class: "cursor", y1: plot.top, y2: plot.bottom, visibility: "hidden" });
  let at = steps.length - 1;
  const show = (clientX, clientY) => {
    const x = plot.x(steps[at]);
    for (const end of ["x1", "x2"]) line.setAttribute(end, x);
    line.setAttribute("visibility", "visible");
    const known = panel.curves.map((curve) => [curve.label, curve.points.find((point) => point[0] === steps[at])]);
    const lines = known.filter(([, point]) => point).map(([label, point]) => `${label}: ${+point[1].toPrecision(4)}`);
    showTip([`Step ${steps[at]}`, ...lines], clientX, clientY);
  };
  const hide = () => {
    line.setAttribute("visibility", "hidden");
    hideTip();
  };
  const box = () => plot.root.getBoundingClientRect();
  const showHere = () => show(box().left + plot.x(steps[at]), box().top + 30);
  fill(
    plot.root,
    {
      tabindex: "0",
      role: "img",
      "aria-label": `${panel.title}: ${panel.unit}. Arrow keys read the values.`,
      onpointermove: (event) => {
        const distance = (step) => Math.abs(box().left + plot.x(step) - event.clientX);
        at = steps.reduce((best, step, i) => (distance(step) < distance(steps[best]) ? i : best), 0);
        show(event.clientX, event.clientY);
      },
      onpointerleave: hide,
      onblur: hide,
      onfocus: showHere,
      onkeydown: (event) => {
        const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!move) return;
        event.preventDefault();
        at = Math.min(Math.max(at + move, 0), steps.length - 1);
        showHere();
      },
    },
    [line],
  );
}
