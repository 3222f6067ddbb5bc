"""LoRA's distance from full fine-tuning on CoLA: by protocol, and every method by rate."""

from __future__ import annotations

from measured.runs import NOT_YET, PROTOCOL, REPORT, between, cells
from measured.text import card, interval, markdown, number, score

FIGURE = "images/reproduction/rate-cola.svg"


def gap_table() -> str:
    """Full fine-tuning and LoRA on CoLA under every protocol, and the difference between them."""
    full, lora = (REPORT.published.scores[row]["cola"] for row in PROTOCOL)
    published = [number(full, 2), number(lora, 2), number(lora - full, 2, signed=True)]
    settings = REPORT.training
    rate, head, epochs = (f"{settings[name]:g}" for name in ("lr", "head_lr", "epochs"))
    lines = [
        ["the report, RoBERTa-base", rate, head, epochs, "1", *published],
        _gap_row("its protocol", "founding-report", settings["lr"]),
        _gap_row("its rate", "rates-cola", settings["lr"]),
        _gap_row("tuned alike", "fair", None),
    ]
    columns = ["protocol", "lr", "head's lr", "epochs", "seeds", *PROTOCOL, "lora − full, 95 %"]
    return markdown(columns, lines)


def _gap_row(protocol: str, part: str, rate: float | None) -> list[str]:
    """The row of a protocol: the part's cells at `rate`, or, without one, at the rates tuned."""
    rows = {
        records[0].method.name: records
        for (task, _), records in cells(part).items()
        if task == "cola" and rate in {None, records[0].training["lr"]}
    }
    if not rows.keys() >= set(PROTOCOL):
        return [protocol, NOT_YET, *["–"] * 6]
    full, lora = (rows[name] for name in PROTOCOL)
    training = lora[0].training
    pair = between(part, "cola", lora[0].method.label, full[0].method.label)
    return [
        protocol,
        "found by trials" if rate is None else f"{rate:g}",
        f"{training['head_lr']:g}",
        str(training["epochs"]),
        str(len(lora)),
        *(score(records) for records in (full, lora)),
        interval(pair),
    ]


def rates_table() -> str:
    """Scores on CoLA by method and rate, and the figure of the same."""
    done = {
        (records[0].method.name, records[0].training["lr"]): records
        for records in cells("rates-cola").values()
    }
    rates = sorted({rate for _, rate in done})
    names = {name for name, _ in done}
    columns = ["method", *(f"{rate:g}" for rate in rates)]
    lines = [
        [card(name), *(score(done.get((name, rate), [])) for rate in rates)]
        for name in REPORT.published.scores
        if name in names
    ]
    if not done:
        return f"{NOT_YET}\n"
    return f"{markdown(columns, lines)}\n![Matthews over learning rate]({FIGURE})\n"
