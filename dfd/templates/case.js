"use strict";
const body = document.querySelector("#images tbody"), rows = [...body.rows], by = id => document.getElementById(id);
let column = "place", descending = false;
const value = (row, name) => {
  const text = row.dataset[name] || "", number = Number(text);
  return text !== "" && !Number.isNaN(number) ? number : text.toLowerCase();
};
const compare = (a, b) => {
  if (by("first").checked && (a.dataset.kind === "unsure") !== (b.dataset.kind === "unsure"))
    return a.dataset.kind === "unsure" ? -1 : 1;
  const [x, y] = [value(a, column), value(b, column)];
  const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? 1 : -1;
  return (descending ? -order : order) || a.dataset.place - b.dataset.place;
};
const show = () => {
  const wanted = by("find").value.toLowerCase(), only = by("only").value;
  let count = 0;
  for (const row of rows) {
    const fits = row.textContent.toLowerCase().includes(wanted) && (!only || row.dataset.kind === only);
    row.hidden = !fits || (row.classList.contains("folded") && !by("unfold").checked && !wanted && !only);
    count += !row.hidden;
  }
  by("count").textContent = count === rows.length ? `${count} images` : `${count} of ${rows.length} images`;
};
const sort = () => { rows.sort(compare); body.append(...rows); };
for (const button of document.querySelectorAll("#images thead button")) {
  button.addEventListener("click", () => {
    descending = column === button.dataset.column ? !descending : button.dataset.column === "evidence";
    column = button.dataset.column;
    for (const other of document.querySelectorAll("#images thead th")) other.removeAttribute("aria-sort");
    button.parentElement.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sort();
  });
}
by("find").form.addEventListener("submit", event => event.preventDefault());
for (const id of ["find", "only", "unfold"]) by(id).addEventListener("input", show);
by("first").addEventListener("input", sort);
show();
