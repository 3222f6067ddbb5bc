// The verdicts: pointer, touch or arrow keys choose the square whose words stand below its table.

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

const verdictTables = [...document.querySelectorAll("table.verdicts")];
const squaresOf = (table) => [...table.querySelectorAll("td[title]")];

function listenToVerdicts() {
  for (const way of document.querySelectorAll(".way-there")) way.hidden = false;
  for (const table of verdictTables) {
    const words = table.closest("details").querySelector("output");
    for (const square of squaresOf(table)) {
      square.addEventListener("focus", () => (words.textContent = square.title));
      square.addEventListener("mouseover", () => (words.textContent = square.title));
    }
    table.addEventListener("keydown", (event) => step(table, event));
    stopAtFirst(table);
  }
}

/** The tab key stops at a table once; from there arrow keys lead to its other squares. */
function stopAt(table, square) {
  for (const other of squaresOf(table)) other.tabIndex = -1;
  if (square) square.tabIndex = 0;
}

function stopAtFirst(table) {
  stopAt(table, squaresOf(table).find((square) => !square.hidden && !square.parentElement.hidden));
}

function step(table, event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // a shortcut of the browser
  const [down, right] = STEPS[event.key] ?? [0, 0];
  const next = (down || right) && nextSquare(table, event.target.closest("td"), down, right);
  if (!next) return;
  event.preventDefault(); // the page would scroll
  stopAt(table, next);
  next.focus();
}

/** The nearest square in a direction: a row has none with itself, and some may be hidden. */
function nextSquare(table, square, down, right) {
  const rows = [...table.tBodies[0].rows];
  let y = rows.indexOf(square.parentElement);
  let x = square.cellIndex;
  let next;
  do {
    y += down;
    x += right;
    next = rows[y]?.cells[x];
  } while (next && !(next.title && next.offsetParent));
  return next;
}
