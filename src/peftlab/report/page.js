"use strict";
const config = JSON.parse(document.getElementById("vega-config").textContent);
const options = {
  config,
  mode: "vega-lite",
  renderer: "svg",
  actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
};
for (const figure of document.querySelectorAll("figure")) {
  const chart = figure.querySelector(".chart");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const columns = spec.params.find((param) => param.name === "legend_columns");
  columns.value = Math.max(1, Math.floor((chart.clientWidth - 60) / 105));
  vegaEmbed(chart, spec, { ...options, downloadFileName: figure.id }).catch((error) => {
    chart.textContent = `This figure could not be drawn: ${error}`;
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("main details")) details.open = true;
});
