"use strict";
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, body = heading.closest("table").tBodies[0], place = heading.cellIndex;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const value = row => { const text = row.cells[place].textContent.trim(); return text !== "" && !isNaN(text) ? Number(text) : text; };
    const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...[...body.rows].sort((a, b) => (descending ? -1 : 1) * compare(value(a), value(b))));
  });
}
