"use strict";
// Figures: those near the view are drawn first, and follow the choice while they are there.

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
      else if (isIntersecting) update(chart);
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

/** Draw the rest one by one while the page is idle, so that they can be printed and searched. */
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
    update(chart);
  } catch (error) {
    place.textContent = `This figure could not be drawn: ${error}`;
  }
}

/** Reserve about the room that the figure will take, so that links to places below it are right. */
function keepRoom(figure) {
  const place = figure.querySelector(".chart");
  const spec = specOf(figure, place.clientWidth);
  const { height } = spec.spec ?? spec;
  const rows = spec.spec ? Math.ceil((spec.facet?.sort?.length ?? 1) / spec.columns) : 1;
  const rowHeight = height?.step ? height.step * entries.length : height;
  place.style.minHeight = `${rows * ((rowHeight || 250) + 18) + 50}px`;
}

/** A figure's spec with as many columns of legend entries, or of small plots, as fit the width. */
function specOf(figure, width) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const columns = spec.params?.find((param) => param.name === "legend_columns");
  if (columns) columns.value = Math.max(1, Math.floor((width - 60) / 105));
  if (spec.facet && spec.spec) {
    const panels = spec.facet.sort?.length ?? Infinity;
    spec.columns = Math.min(panels, Math.max(2, Math.floor(width / 170)));
    spec.spec.width = width / spec.columns - 30;
    spec.facet.header.labelLimit = spec.spec.width;
  }
  return spec;
}

/** Draw small plots anew after a change of the page's width, which they don't follow. */
function refit(chart, figure) {
  const width = figure.querySelector(".chart").clientWidth;
  if (!chart.spec?.facet || !width || width === chart.width) return;
  chart.view?.finalize();
  draw(figure, chart);
}

/** Show the choice in a drawn figure; one far from the view is updated when it comes near. */
function update(chart) {
  if (!chart.view || !chart.near) return;
  sendChoice(chart.view, chart.spec);
  chart.view.resize().runAsync(); // fewer panels take less room
}

function sendChoice(view, spec) {
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

/** A figure's numbers as CSV: its first data set, since others draw them again in grey or as words. */
const csv = (spec) => Object.values(spec.datasets ?? {})[0] ?? "";

/** Printing does not wait: figures that are not drawn yet are printed as still pictures. */
function drawRestStill() {
  for (const [figure, chart] of charts) {
    const still = figure.querySelector("noscript").textContent;
    if (chart.begun) continue;
    const place = figure.querySelector(".chart");
    if (still.startsWith("<svg")) place.innerHTML = still;
    else place.textContent = "Not drawn yet: print again in a few seconds.";
  }
}
