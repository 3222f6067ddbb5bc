// Every run: its name in the table opens a dialog with all that is known of it.

const runs = JSON.parse(document.getElementById("runs-data").textContent);
const OVER_TRAINING = /^(score|second|loss|memory)-/;

function listenToRuns() {
  for (const name of document.querySelectorAll("[data-cell]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-haspopup", "dialog");
    button.append(...name.childNodes);
    button.addEventListener("click", () => openRun(name.dataset.cell));
    name.append(button);
  }
  const command = document.querySelector("#run .command");
  command.querySelector("button").addEventListener("click", () => copy(command));
}

function openRun(cell) {
  const run = runs.cells[cell];
  const dialog = document.getElementById("run");
  dialog.querySelector("h3").textContent = `${run.method} on ${run.task}, seed ${run.seed}`;
  const command = dialog.querySelector(".command");
  command.hidden = !run.command;
  command.querySelector("code").textContent = commandOf(run);
  command.querySelector("button").textContent = "Copy";
  dialog.querySelector(".no-command").hidden = Boolean(run.command);
  dialog.querySelector("dl").replaceChildren(...describe(cell, run));
  dialog.showModal();
}

function commandOf(run) {
  return (run.command ?? []).map((place) => runs.shared[place]).join(`--seeds ${run.seed} `);
}

function describe(cell, run) {
  const shared = Object.entries(run.at).map(([name, place]) => [name, runs.shared[place]]);
  const parts = [
    ["cell", cell],
    ["failed", run.failed],
    ["hides", run.hides],
    ["score", run.score],
    ["measured", measured(cell)],
    ["its score by epoch", run.epochs && line(run.epochs, "score by epoch")],
    ["its training loss", run.losses && line(run.losses, "training loss")],
    ["beside the others", curves(run)],
    ...shared,
  ];
  const isKnown = (value) => value instanceof Node || Object.keys(value ?? {}).length;
  return parts.filter(([, value]) => isKnown(value)).flatMap(entry);
}

/** The numbers of the run's line in the table, by the names of their columns. */
function measured(cell) {
  const row = document.querySelector(`tr [data-cell="${CSS.escape(cell)}"]`)?.closest("tr");
  if (!row) return null;
  const heads = row.closest("table").tHead.rows[0].cells;
  const numbers = [...row.cells].slice(2).map((td) => [heads[td.cellIndex].innerText, td.innerText]);
  return Object.fromEntries(numbers.map((pair) => pair.map((text) => text.replaceAll("\n", " "))));
}

/** A small line over evenly spaced values, with the first, the last and the extremes in words. */
function line(values, name) {
  const [width, height, edge] = [240, 48, 3];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (place) => edge + (place / Math.max(1, values.length - 1)) * (width - 2 * edge);
  const y = (value) => height - edge - ((value - low) / (high - low || 1)) * (height - 2 * edge);
  const points = values.map((value, place) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`);
  const words = `from ${values[0]} to ${values.at(-1)}, between ${low} and ${high}`;
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${name} ${words}` });
  drawing.append(svg("polyline", { points: points.join(" ") }));
  drawing.append(svg("circle", { cx: x(values.length - 1), cy: y(values.at(-1)), r: 2.5 }));
  const span = document.createElement("span");
  span.className = "line";
  span.append(drawing, ` ${words}`);
  return span;
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Links to the figures with the run's line; following one makes its method stand out. */
function curves(run) {
  const links = document.createElement("span");
  for (const figure of charts.keys()) {
    if (figure.dataset.task !== run.task || !OVER_TRAINING.test(figure.id)) continue;
    const link = document.createElement("a");
    link.href = `#${figure.id}`;
    link.textContent = figure.querySelector("b").textContent;
    link.addEventListener("click", () => {
      document.getElementById("run").close();
      if (choice.picked !== run.method) pick(run.method);
    });
    links.append(link, " ");
  }
  return links;
}

function entry([name, value]) {
  const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  const isPlain = typeof value === "string" || value instanceof Node;
  detail.append(isPlain ? value : pairs(value));
  return [term, detail];
}

function pairs(values) {
  const list = document.createElement("ul");
  list.className = "pairs";
  for (const [name, value] of Object.entries(values)) {
    const [item, bold] = [document.createElement("li"), document.createElement("b")];
    bold.textContent = name;
    item.append(bold, " ", String(value));
    list.append(item);
  }
  return list;
}

/** Copy the command; if the browser denies a local page the clipboard, select it instead. */
async function copy(command) {
  const [code, button] = [command.querySelector("code"), command.querySelector("button")];
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
}
