// Puts the sections that have data on the page, in the order in which a reader wants them.

/** A number and its unit stay on one line. */
function unbroken(text) {
  return text.replace(/(\d) (?=%|s\b|min\b|h\b|GiB\b)/g, "$1\u00a0");
}

function findingsSection() {
  const finding = ({ title, figure, text }) =>
    el(
      "article",
      { class: "finding" },
      el("h3", {}, title),
      figure ? el("p", { class: "figure" }, figure) : null,
      text.split("\n").map((line) => el("p", {}, unbroken(line))),
    );
  return el("section", { id: "findings", "aria-label": "Findings" }, DATA.findings.map(finding));
}

function notesSection() {
  return section("notes", "Where this comes from", "", el("ul", { class: "notes" }, DATA.notes.map(note)));
}

const SECTIONS = [
  ["Findings", DATA.findings.length, findingsSection],
  ["Numbers", DATA.table || Object.keys(DATA.failed).length, () => tableSection()],
  ["Pareto", DATA.dots.length, () => paretoSection()],
  ["Attacks", DATA.attacks, () => attacksSection()],
  ["Answers", DATA.dialogues, () => answersSection()],
  ["Dialogues", DATA.dialogues, () => dialoguesSection()],
  ["Training", DATA.runs.length, () => curvesSection()],
  ["Origin", DATA.notes.length, notesSection],
];

const built = SECTIONS.filter(([, data]) => data).map(([name, , build]) => [name, build()]);
document.getElementById("page").append(
  el("header", {}, el("h1", {}, DATA.title), DATA.lead ? el("p", { class: "lead" }, DATA.lead) : null),
  el(
    "nav",
    { class: "contents", "aria-label": "Contents" },
    built.map(([name, node]) => el("a", { href: `#${node.id}` }, name)),
  ),
  ...built.map(([, node]) => node),
);
