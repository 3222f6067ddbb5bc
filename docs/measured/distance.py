"""LoRA's distance from full fine-tuning on CoLA: by protocol, and every method by rate."""

from __future__ import annotations

from measured.runs import NOT_YET, PROTOCOL, REPORT, between, cells
from measured.text import card, interval, markdown, number, score

FIGURE = "images/reproduction/rate-cola.svg"


def gap_table() -> str:
    """Full fine-tuning and LoRA on CoLA under every protocol, and what lies between them."""
    full, lora = (REPORT.published.scores[row]["cola"] for row in PROTOCOL)
    theirs = [number(full, 2), number(lora, 2), number(lora - full, 2, signed=True)]
    settings = REPORT.training
    rate, head, epochs = (f"{settings[name]:g}" for name in ("lr", "head_lr", "epochs"))
    lines = [
        ["the report, RoBERTa-base", rate, head, epochs, "1", *theirs],
        _gap_row("its protocol", "founding-report", settings["lr"]),
        _gap_row("its rate", "rates-cola", settings["lr"]),
        _gap_row("tuned alike", "fair", None),
    ]
    columns = ["protocol", "lr", "head's lr", "epochs", "seeds", *PROTOCOL, "lora − full, 95 %"]
    return markdown(columns, lines)


def _gap_row(said: str, part: str, rate: float | None) -> list[str]:
    """Of the part's rows that were trained at `rate`, or at what was found for them."""
    rows = {
        of_row[0].method.name: of_row
        for (task, _), of_row in cells(part).items()
        if task == "cola" and rate in {None, of_row[0].training["lr"]}
    }
    if not rows.keys() >= set(PROTOCOL):
        return [said, NOT_YET, *["–"] * 6]
    full, lora = (rows[name] for name in PROTOCOL)
    training = lora[0].training
    pair = between(part, "cola", lora[0].method.label, full[0].method.label)
    return [
        said,
        "found by trials" if rate is None else f"{rate:g}",
        f"{training['head_lr']:g}",
        str(training["epochs"]),
        str(len(lora)),
        *(score(of_row) for of_row in (full, lora)),
        interval(pair),
    ]


def rates_table() -> str:
    """CoLA by method and rate, and the same as a figure."""
    done = {
        (of_row[0].method.name, of_row[0].training["lr"]): of_row
        for of_row in cells("rates-cola").values()
    }
    grid = sorted({rate for _, rate in done})
    names = {name for name, _ in done}
    head = ["method", *(f"{rate:g}" for rate in grid)]
    lines = [
        [card(name), *(score(done.get((name, rate), [])) for rate in grid)]
        for name in REPORT.published.scores
        if name in names
    ]
    if not done:
        return f"{NOT_YET}\n"
    return f"{markdown(head, lines)}\n![Matthews over learning rate]({FIGURE})\n"
