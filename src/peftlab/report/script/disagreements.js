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

const answersOf = (form) => answers.find((one) => one.task === form.task.value);

/** The methods that have answers on the task; those that were chosen stay so where they can. */
function offerMethods(form) {
  const names = Object.keys(answersOf(form).by_row);
  for (const [index, select] of [form.a, form.b].entries()) {
    const before = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    select.value = names.includes(before) ? before : names[index];
  }
  compare(form);
}

function compare(form) {
  const { kind, seed, labels, by_row: rows, texts } = answersOf(form);
  const [a, b] = [form.a.value, form.b.value];
  const make = kind === "classes" ? comparedClasses : comparedNumbers;
  const caption = `Seed ${seed}, ${labels.length} dev examples`;
  const shown = make(labels, { name: a, answers: rows[a] }, { name: b, answers: rows[b] }, texts);
  document.getElementById("pair-shown").replaceChildren(table(caption, ...shown));
}

function comparedClasses(labels, a, b, texts) {
  const kinds = [
    [`only ${a.name} is right`, (x, y) => x && !y],
    [`only ${b.name} is right`, (x, y) => !x && y],
    ["neither is right", (x, y) => !x && !y],
    ["both are right", (x, y) => x && y],
  ];
  const examples = [...labels].map((label, i) => [label === a.answers[i], label === b.answers[i]]);
  const lines = kinds.map(([name, is]) => {
    const found = examples.flatMap(([x, y], index) => (is(x, y) ? [index] : []));
    return [name, found.length, name.startsWith("both") ? "" : listed(found, texts)];
  });
  return [["", "examples", "which"], lines];
}

/** Their numbers, and below each other what they say, where that is known. */
function listed(found, texts) {
  const some = found.slice(0, MOST_LISTED);
  const more = found.length > some.length ? `and ${found.length - some.length} more` : "";
  if (!texts.length) return `${some.join(", ")} ${more}`.trim();
  const list = document.createElement("ul");
  for (const index of some) listItem(list, `${index}: ${texts[index]}`);
  if (more) listItem(list, more);
  return list;
}

function listItem(list, text) {
  list.appendChild(document.createElement("li")).textContent = text;
}

/** The examples on which one is much nearer to the label than the other. */
function comparedNumbers(labels, a, b, texts) {
  const off = (one, index) => Math.abs(one.answers[index] - labels[index]);
  const order = [...labels.keys()].sort((i, j) => gap(j) - gap(i));
  function gap(index) {
    return Math.abs(off(a, index) - off(b, index));
  }
  const nearer = (i) => (off(a, i) < off(b, i) ? a.name : off(b, i) < off(a, i) ? b.name : "both alike");
  const lines = order
    .slice(0, MOST_NUMBERS)
    .map((i) => [`${i}`, labels[i], a.answers[i], b.answers[i], gap(i).toPrecision(3), nearer(i), ...texts.slice(i, i + 1)]);
  const heads = ["example", "label", a.name, b.name, "errors differ by", "nearer"];
  return [[...heads, ...(texts.length ? ["what it says"] : [])], lines];
}

function table(caption, heads, lines) {
  const made = document.createElement("table");
  made.createCaption().textContent = caption;
  const head = made.createTHead().insertRow();
  for (const text of heads) head.append(cell(text ? "th" : "td", text, "col"));
  head.lastChild.className = "words";
  const body = made.createTBody();
  for (const [first, ...rest] of lines) {
    body.insertRow().append(cell("th", first, "row"), ...rest.map((text) => cell("td", text)));
  }
  const region = document.createElement("div");
  region.className = "scroll";
  region.tabIndex = 0; // else a keyboard can't scroll it
  region.setAttribute("role", "region");
  region.setAttribute("aria-label", caption);
  region.append(made);
  return region;
}

function cell(kind, text, scope) {
  const made = document.createElement(kind);
  made.append(text);
  if (scope && kind === "th") made.scope = scope;
  if (typeof text !== "number" && kind === "td") made.className = "words";
  return made;
}
