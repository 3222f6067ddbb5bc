listenToBar();
makeTablesSortable();
watchFigures();
listenToRuns();
listenToDisagreements();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("main details")) details.open = true;
});
