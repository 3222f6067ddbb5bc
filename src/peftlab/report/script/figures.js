"use strict";
// Figures: those near the view are drawn first, and heed what is chosen while they are there.

const config = JSON.parse(document.getElementById("vega-config").textContent);
const options = {
  config,
  mode: "vega-lite",
  renderer: "svg",
  actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
};
const charts = new Map([...document.querySelectorAll("figure")].map((figure) => [figure, {}]));

const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const chart = charts.get(target);
      chart.near = isIntersecting;
      if (isIntersecting && !chart.begun) draw(target, chart);
      else if (isIntersecting) tell(chart);
    }
  },
  { rootMargin: "400px" },
);

function watchFigures() {
  for (const figure of charts.keys()) {
    keepRoom(figure);
    near.observe(figure);
  }
  addEventListener("resize", () => charts.forEach(refit));
  addEventListener("beforeprint", drawRestStill);
  whenIdle(drawNext);
}

const whenIdle = window.requestIdleCallback ?? ((run) => setTimeout(run, 50));

/** One after the other, while there is nothing else to do: to be printed, or searched for a word. */
async function drawNext() {
  const next = [...charts].find(([figure, chart]) => !chart.begun && figure.offsetParent);
  if (!next) return;
  await draw(...next);
  whenIdle(drawNext);
}

async function draw(figure, chart) {
  const place = figure.querySelector(".chart");
  chart.begun = true;
  chart.width = place.clientWidth;
  chart.spec = specOf(figure, chart.width);
  try {
    const { view } = await vegaEmbed(place, chart.spec, { ...options, downloadFileName: figure.id });
    chart.view = view;
    place.style.minHeight = "";
    view.addEventListener("mouseover", (_, item) => glance(item?.datum?.method ?? ""));
    view.addEventListener("click", (_, item) => item?.datum?.method && pick(item.datum.method));
    place.addEventListener("mouseleave", () => glance(""));
    addToMenu(figure, chart.spec);
    tell(chart);
  } catch (error) {
    place.textContent = `This figure could not be drawn: ${error}`;
  }
}

/** About as much room as it will take, so that a link to what is below it leads there. */
function keepRoom(figure) {
  const place = figure.querySelector(".chart");
  const spec = specOf(figure, place.clientWidth);
  const { height } = spec.spec ?? spec;
  const rows = spec.spec ? Math.ceil((spec.facet?.sort?.length ?? 1) / spec.columns) : 1;
  const one = height?.step ? height.step * entries.length : height;
  place.style.minHeight = `${rows * ((one || 250) + 18) + 50}px`;
}

/** A figure's spec with as many columns of legend entries, or of small plots, as the width takes. */
function specOf(figure, width) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const columns = spec.params?.find((param) => param.name === "legend_columns");
  if (columns) columns.value = Math.max(1, Math.floor((width - 60) / 105));
  if (spec.facet && spec.spec) {
    const panels = spec.facet.sort?.length ?? Infinity;
    spec.columns = Math.min(panels, Math.max(2, Math.floor(width / 170)));
    spec.spec.width = width / spec.columns - 30;
  }
  return spec;
}

/** Small plots don't follow the page's width by themselves. */
function refit(chart, figure) {
  const width = figure.querySelector(".chart").clientWidth;
  if (!chart.spec?.facet || !width || width === chart.width) return;
  chart.view?.finalize();
  draw(figure, chart);
}

/** Give a drawn figure what is chosen; one far from the view is told when it comes near. */
function tell(chart) {
  if (!chart.view || !chart.near) return;
  signal(chart.view, chart.spec);
  chart.view.resize().runAsync(); // fewer panels take less room
}

function signal(view, spec) {
  const signals = { off: hiddenMethods(), picked: choice.glanced || choice.picked };
  for (const [name, value] of Object.entries(signals)) {
    if (spec.params?.some((param) => param.name === name)) view.signal(name, value);
  }
}

function addToMenu(figure, spec) {
  const menu = figure.querySelector("details");
  menu.querySelector("summary").setAttribute("aria-label", `Save ${figure.id}`);
  menu.querySelector("summary").removeAttribute("title");
  const link = document.createElement("a");
  link.textContent = "Save data as CSV";
  link.download = `${figure.id}.csv`;
  link.href = URL.createObjectURL(new Blob([csv(spec)], { type: "text/csv" }));
  menu.querySelector(".vega-actions").append(link);
}

/** The data that lies in a spec, as text; of several sets one below the other. */
const csv = (spec) => Object.values(spec.datasets ?? {}).join("\n");

/** Paper has no view to come near and does not wait: what is not drawn yet is a still picture. */
function drawRestStill() {
  for (const [figure, chart] of charts) {
    const still = figure.querySelector("noscript").textContent;
    if (chart.begun) continue;
    const place = figure.querySelector(".chart");
    if (still.startsWith("<svg")) place.innerHTML = still;
    else place.textContent = "Not drawn yet: print again in a few seconds.";
  }
}
