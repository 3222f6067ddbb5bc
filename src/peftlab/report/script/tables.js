// Tables are sorted by the data-value of their cells, not by the texts that these show.

const collator = new Intl.Collator(undefined, { numeric: true });

function makeTablesSortable() {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    for (const head of [...table.tHead.rows].at(-1).cells) {
      if (head.tagName === "TH") makeSortable(table, head);
    }
  }
}

function makeSortable(table, head) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  head.setAttribute("aria-sort", "none");
  button.addEventListener("click", () => sortBy(table, head));
}

/** The best first: numbers fall, words and errors rise; a second time the order is reversed. */
function sortBy(table, head) {
  const isNumber = [...table.tBodies].some((body) =>
    [...body.rows].some((row) => row.cells[head.cellIndex]?.dataset.value),
  );
  const previous = head.getAttribute("aria-sort");
  const falls = isNumber && !("lower" in head.dataset);
  const first = falls ? "descending" : "ascending";
  const second = falls ? "ascending" : "descending";
  const order = previous === first ? second : first;
  for (const other of head.parentElement.cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  head.setAttribute("aria-sort", order);
  for (const body of table.tBodies) {
    if (!body.classList.contains("baselines")) sortRows(body, head.cellIndex, isNumber, order);
  }
}

function sortRows(body, index, isNumber, order) {
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[index];
    if (!isNumber) return cell.textContent.trim();
    return cell.dataset.value ? Number(cell.dataset.value) : null;
  };
  const rows = [...body.rows].filter((row) => row.cells[0].scope === "row");
  const keyed = rows.map((row) => [key(row), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // missing values come last
    return sign * (isNumber ? a - b : collator.compare(a, b));
  });
  body.append(...keyed.map(([, row]) => row));
}
