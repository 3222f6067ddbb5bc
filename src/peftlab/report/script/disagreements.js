// Two methods' answers to the same dev examples, side by side.

const answers = JSON.parse(document.getElementById("answers-data").textContent);
const MOST_LISTED = 300; // examples of one kind
const MOST_NUMBERS = 20; // of a regression

function listenToDisagreements() {
  const form = document.getElementById("pair");
  if (!form) return;
  form.hidden = false;
  form.task.addEventListener("change", () => offerMethods(form));
  for (const select of [form.a, form.b]) select.addEventListener("change", () => compare(form));
  offerMethods(form);
}

const answersOf = (form) => answers.find((entry) => entry.task === form.task.value);

/** Offer the methods that have answers on the task; chosen ones stay chosen where they can. */
function offerMethods(form) {
  const names = Object.keys(answersOf(form).by_row);
  for (const [index, select] of [form.a, form.b].entries()) {
    const previous = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    select.value = names.includes(previous) ? previous : names[index];
  }
  compare(form);
}

function compare(form) {
  const { kind, seed, labels, by_row: rows, texts } = answersOf(form);
  const [a, b] = [form.a.value, form.b.value];
  const tabulate = kind === "classes" ? compareClasses : compareNumbers;
  const caption = `Seed ${seed}, ${labels.length} dev examples`;
  const headsAndLines = tabulate(labels, { name: a, answers: rows[a] }, { name: b, answers: rows[b] }, texts);
  document.getElementById("pair-shown").replaceChildren(table(caption, ...headsAndLines));
}

function compareClasses(labels, a, b, texts) {
  const kinds = [
    [`only ${a.name} is right`, (x, y) => x && !y],
    [`only ${b.name} is right`, (x, y) => !x && y],
    ["neither is right", (x, y) => !x && !y],
    ["both are right", (x, y) => x && y],
  ];
  const examples = [...labels].map((label, i) => [label === a.answers[i], label === b.answers[i]]);
  const lines = kinds.map(([name, isOfKind]) => {
    const indices = examples.flatMap(([x, y], index) => (isOfKind(x, y) ? [index] : []));
    return [name, indices.length, name.startsWith("both") ? "" : listExamples(indices, texts)];
  });
  return [["", "examples", "which"], lines];
}

/** The examples' numbers, or a list of numbers and texts where the texts are known. */
function listExamples(indices, texts) {
  const first = indices.slice(0, MOST_LISTED);
  const more = indices.length > first.length ? `and ${indices.length - first.length} more` : "";
  if (!texts.length) return `${first.join(", ")} ${more}`.trim();
  const items = document.createElement("ul");
  for (const index of first) addItem(items, `${index}: ${texts[index]}`);
  if (more) addItem(items, more);
  return items;
}

function addItem(items, text) {
  items.appendChild(document.createElement("li")).textContent = text;
}

/** The examples on which one method is much nearer to the label than the other. */
function compareNumbers(labels, a, b, texts) {
  const error = (method, index) => Math.abs(method.answers[index] - labels[index]);
  const order = [...labels.keys()].sort((i, j) => gap(j) - gap(i));
  function gap(index) {
    return Math.abs(error(a, index) - error(b, index));
  }
  const nearer = (i) => (error(a, i) < error(b, i) ? a.name : error(b, i) < error(a, i) ? b.name : "both alike");
  const lines = order
    .slice(0, MOST_NUMBERS)
    .map((i) => [`${i}`, labels[i], a.answers[i], b.answers[i], gap(i).toPrecision(3), nearer(i), ...texts.slice(i, i + 1)]);
  const heads = ["example", "label", a.name, b.name, "errors differ by", "nearer"];
  return [[...heads, ...(texts.length ? ["what it says"] : [])], lines];
}

function table(caption, heads, lines) {
  const element = document.createElement("table");
  element.createCaption().textContent = caption;
  const head = element.createTHead().insertRow();
  for (const text of heads) head.append(cell(text ? "th" : "td", text, "col"));
  head.lastChild.className = "words";
  const body = element.createTBody();
  for (const [first, ...rest] of lines) {
    body.insertRow().append(cell("th", first, "row"), ...rest.map((text) => cell("td", text)));
  }
  const region = document.createElement("div");
  region.className = "scroll";
  region.tabIndex = 0; // so that a keyboard can scroll it
  region.setAttribute("role", "region");
  region.setAttribute("aria-label", caption);
  region.append(element);
  return region;
}

function cell(kind, text, scope) {
  const element = document.createElement(kind);
  element.append(text);
  if (scope && kind === "th") element.scope = scope;
  if (typeof text !== "number" && kind === "td") element.className = "words";
  return element;
}
