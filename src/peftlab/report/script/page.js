listenToBar();
makeTablesSortable();
listenToVerdicts();
watchFigures();
listenToRuns();
listenToDisagreements();
openOnPaper();

/** Open all details to print them, except long tables, which are printed only if they are open. */
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
