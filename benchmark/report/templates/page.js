"use strict";
// Tables sort by their heads and filter by words; without this script they are plain tables.
const number = (text) => parseFloat(text);
const missing = (text) => text === "" || text === "--" || text === "-";

function compare(a, b, numeric) {
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true });
}

function sort(table, head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  const sign = down ? -1 : 1;
  const numeric = head.classList.contains("n");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
  keyed.sort(([a], [b]) => (missing(a) || missing(b) ? 1 : sign) * compare(a, b, numeric));
  body.append(...keyed.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

function filter(table, words, told) {
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  told.textContent = words.length ? `${shown} of ${table.tBodies[0].rows.length} rows` : `${shown} rows`;
}

for (const table of document.querySelectorAll("table.live")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head, column));
    head.append(button);
  });
  const bar = document.createElement("p");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const told = document.createElement("output");
  bar.className = "filter";
  input.type = "search";
  input.placeholder = "all of these words";
  const name = document.createElement("span");
  name.className = "unseen";
  name.textContent = ` the table ${table.caption.textContent.trim()}`;
  label.append("Filter", name, " ", input);
  bar.append(label, told);
  table.parentElement.before(bar);
  const update = () => filter(table, input.value.toLowerCase().split(/\s+/).filter(Boolean), told);
  input.addEventListener("input", update);
  update();
}

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) part.open = true;
});
