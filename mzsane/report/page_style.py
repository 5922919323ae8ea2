"""The style and the script of the report's page; both are written into the page, which loads nothing."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1b2430; --muted: #5b6675;
  --line: #dde2e8; --accent: #0b5f96; --band: #f2f5f8; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --card: #1a2029; --ink: #e7ebf0; --muted: #a3aebb;
  --line: #303a47; --accent: #7cc0ef; --band: #212936; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
.kicker { margin: 0; color: var(--accent); font-weight: 600; overflow-wrap: anywhere; }
h1 { margin: .2rem 0 .4rem; font-size: clamp(1.9rem, 5vw, 3.1rem); line-height: 1.12; letter-spacing: -.02em; }
h2 { margin: 3.2rem 0 .8rem; font-size: 1.5rem; letter-spacing: -.01em; }
h3 { margin: 0 0 .5rem; font-size: 1.08rem; overflow-wrap: anywhere; }
.facts, figcaption, .note, caption { color: var(--muted); font-size: .92rem; }
.facts { margin: 0; }
.answers { font-size: 1.14rem; padding-left: 1.2rem; }
.answers li { margin: .45rem 0; max-width: 62rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 1rem;
  margin-top: 1.4rem; }
.card, figure, details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.columns { columns: 28rem; column-gap: 1rem; }
.columns .card { break-inside: avoid; margin-bottom: 1rem; }
.card { padding: 1.1rem 1.2rem; }
.card ul { margin: 0; padding-left: 1.1rem; font-size: .95rem; }
.card li { margin: .5rem 0; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; overflow: hidden; }
.picture { overflow-x: auto; background: #ffffff; padding: .8rem; }
.picture svg, .picture img { display: block; width: 100%; min-width: 46rem; height: auto; }
figcaption { padding: .8rem 1.1rem; border-top: 1px solid var(--line); max-width: 70rem; }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 12px; background: var(--card);
  margin: .8rem 0 1.4rem; }
.tall { max-height: 34rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .7rem .8rem; font-weight: 600; }
th, td { padding: .38rem .8rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--band); border-top: 0; z-index: 1; }
.tall table { font-size: .8rem; }
.tall :is(th, td) { padding: .3rem .5rem; }
.tall th { white-space: normal; vertical-align: bottom; }
tbody tr:hover { background: var(--band); }
tr.first td { border-top: 2px solid var(--muted); }
.number { text-align: right; }
.marks { display: inline-block; width: 1.9em; padding-left: .3em; text-align: left; }
.best { color: var(--accent); }
td.wrap { white-space: normal; }
td.address { white-space: normal; overflow-wrap: anywhere; min-width: 22rem; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.filters { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; }
.filters[hidden] { display: none; }
.filters input, .filters select { font: inherit; font-size: .9rem; padding: .35rem .5rem; color: var(--ink);
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; max-width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.2rem; margin: 0; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--muted); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .86rem; }
details { padding: .8rem 1.1rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: .1rem; } dd { margin-bottom: .6rem; }
  main { padding-top: 1.5rem; } }
@media print { .tall { max-height: none; } .filters { display: none; } figure, .card { break-inside: avoid; } }
"""

# Sorts the table by a click on a heading, and hides rows that do not match the text and the choices.
SCRIPT = """
(() => {
  const table = document.getElementById("measurements");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const filters = document.getElementById("filters"), text = filters.querySelector("input");
  const count = filters.querySelector("output"), choices = [];
  const show = () => {
    const words = text.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !(words.every(word => content.includes(word)) &&
        choices.every(([i, box]) => !box.value || row.cells[i].textContent === box.value));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  heads.forEach((head, i) => {
    const label = head.textContent, button = document.createElement("button");
    button.textContent = label;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const number = head.classList.contains("number");
      const value = row => number ? parseFloat(row.cells[i].textContent) : row.cells[i].textContent;
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        if (!number) return (down ? -1 : 1) * x.localeCompare(y);
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return (down ? -1 : 1) * (x - y);
      };
      body.append(...rows.sort(compare));
    });
    if (!head.classList.contains("choose")) return;
    const box = document.createElement("select");
    box.setAttribute("aria-label", label);
    box.add(new Option(`${label}: all`, ""));
    for (const name of new Set(rows.map(row => row.cells[i].textContent))) box.add(new Option(name, name));
    box.addEventListener("change", show);
    filters.insertBefore(box, count);
    choices.push([i, box]);
  });
  text.addEventListener("input", show);
  filters.hidden = false;
  show();
})();
"""
