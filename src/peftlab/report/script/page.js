listenToBar();
makeTablesSortable();
listenToVerdicts();
watchFigures();
listenToRuns();
listenToDisagreements();
openOnPaper();

/** All but the tables of hundreds of lines, which are printed if they are open on the screen. */
function openOnPaper() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main section > details:not([open], .bulk)")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
}
