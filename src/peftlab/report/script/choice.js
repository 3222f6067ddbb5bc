// The reader's choice: the methods and tasks that are shown, and the method that stands out. It
// holds for every figure and every table.

const choice = { off: new Set(), words: "", picked: "", glanced: "", tasksOff: new Set() };
const bar = document.getElementById("choice");
const entries = [...bar.querySelectorAll("[data-method]")];

const methodOf = (element) => element.dataset.method;
const isFiltered = (method) => !method.toLowerCase().includes(choice.words);
const hiddenMethods = () =>
  entries.map(methodOf).filter((method) => choice.off.has(method) || isFiltered(method));

function listenToBar() {
  bar.hidden = false;
  // the target of a link must not end up behind the bar, however many lines the bar takes
  const storeHeight = () => document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`);
  new ResizeObserver(storeHeight).observe(bar);
  for (const entry of entries) {
    const method = methodOf(entry);
    const box = entry.querySelector("input");
    box.addEventListener("change", () => turn(choice.off, method, !box.checked));
    entry.querySelector("button").addEventListener("click", () => pick(method));
  }
  for (const box of bar.querySelectorAll("[name=task]")) {
    box.addEventListener("change", () => turn(choice.tasksOff, box.value, !box.checked));
  }
  bar.querySelector("[type=search]").addEventListener("input", ({ target }) => {
    choice.words = target.value.trim().toLowerCase();
    show();
  });
  bar.querySelector("#every").addEventListener("click", () => setAll(true));
  bar.querySelector("#no").addEventListener("click", () => setAll(false));
}

function turn(set, name, isIn) {
  if (isIn) set.add(name);
  else set.delete(name);
  show();
}

/** Show all methods that the filter lets through, or none of them. */
function setAll(isShown) {
  for (const entry of entries.filter((candidate) => !isFiltered(methodOf(candidate)))) {
    entry.querySelector("input").checked = isShown;
    if (isShown) choice.off.delete(methodOf(entry));
    else choice.off.add(methodOf(entry));
  }
  show();
}

/** Let a method stand out, until it is picked again. */
function pick(method) {
  choice.picked = choice.picked === method ? "" : method;
  markPicked();
  charts.forEach(update);
}

/** Let the method below the pointer stand out, while it is there. */
function glance(method) {
  if (choice.glanced === method) return;
  choice.glanced = method;
  charts.forEach(update);
}

function markPicked() {
  for (const entry of entries) {
    entry.querySelector("button").setAttribute("aria-pressed", methodOf(entry) === choice.picked);
  }
  for (const row of document.querySelectorAll("tr[data-method]")) {
    row.classList.toggle("picked", methodOf(row) === choice.picked);
  }
}

function show() {
  const off = new Set(hiddenMethods());
  for (const element of document.querySelectorAll("main [data-method], main [data-task]")) {
    element.hidden = off.has(methodOf(element)) || choice.tasksOff.has(element.dataset.task);
  }
  for (const table of document.querySelectorAll("table[data-columns]")) hideColumns(table);
  verdictTables.forEach(stopAtFirst);
  for (const entry of entries) entry.hidden = isFiltered(methodOf(entry));
  bar.querySelector("output").textContent = `${entries.length - off.size} of ${entries.length}`;
  charts.forEach(update);
}

/** Hide every cell below a hidden head. */
function hideColumns(table) {
  const heads = [...table.tHead.rows].at(-1).cells;
  const hidden = [...heads].map((head) => head.hidden);
  for (const row of [...table.tBodies].flatMap((body) => [...body.rows])) {
    for (const [index, cell] of [...row.cells].entries()) {
      if (cell.colSpan === 1) cell.hidden = hidden[index]; // a wider one belongs to no column
    }
  }
  for (const group of table.tHead.querySelectorAll("[data-over]")) {
    const left = [...heads].filter((head) => head.dataset.task && !head.hidden).length;
    group.colSpan = Math.max(1, left);
    group.hidden = left === 0;
  }
}
