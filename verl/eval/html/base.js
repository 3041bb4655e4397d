// What all sections share: the data, elements, numbers, and the hover text. Texts of data are set as text, never as
// markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const MISSING = "–";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** el("p", {class: "x", onclick: f}, "text", node, [nodes]) */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function number(value, digits = 1) {
  return value === null || value === undefined ? MISSING : value.toFixed(digits);
}

/** A note as list item; what stands between backticks is code. */
function note(text) {
  return el(
    "li",
    {},
    text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part)),
  );
}

/** A section of the page with its heading; `about` says in a sentence how to read it. */
function section(id, title, about, ...children) {
  return el(
    "section",
    { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    about ? el("p", { class: "about" }, about) : null,
    ...children,
  );
}

/** A labelled <select>; `options` are [value, text] or {group, options}. */
function choice(label, options, value, onchange) {
  const option = ([key, text]) => el("option", { value: key, selected: key === value }, text);
  const nodes = options.map((one) =>
    Array.isArray(one) ? option(one) : el("optgroup", { label: one.group }, one.options.map(option)),
  );
  const select = el("select", { onchange: () => onchange(select.value) }, nodes);
  return el("label", { class: "control" }, el("span", {}, label), select);
}

function tick(label, checked, onchange) {
  const box = el("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return el("label", { class: "tick" }, box, el("span", {}, label));
}

const tip = document.getElementById("tip");

/** Shows lines of text beside a point of the window; the first line is the heading. */
function showTip(lines, x, y) {
  const [heading, ...rest] = lines;
  tip.replaceChildren(el("strong", {}, heading), ...rest.map((line) => el("div", {}, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  tip.hidden = true;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});

/** Hover text for an element, by pointer and by keyboard. */
function hint(node, lines, onshow = () => {}, onhide = () => {}) {
  const hide = () => {
    hideTip();
    onhide();
  };
  node.addEventListener("pointerenter", (event) => {
    onshow();
    showTip(lines, event.clientX, event.clientY);
  });
  node.addEventListener("focus", () => {
    onshow();
    const box = node.getBoundingClientRect();
    showTip(lines, box.right, box.bottom);
  });
  node.addEventListener("pointerleave", hide);
  node.addEventListener("blur", hide);
}

/** Draws into `frame` now and whenever its width changes. */
function drawn(frame, draw) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now === width || now === 0) return;
    width = now;
    draw(width);
  }).observe(frame);
}

/** About `count` round numbers between low and high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) out.push(+(i * step).toPrecision(12));
  return out;
}
