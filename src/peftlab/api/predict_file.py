"""Answer a file with an adapter: its rows again, with a prediction and a score for each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from peftlab.adapters import check_adapter, load, read_card
from peftlab.api.inference import predictions
from peftlab.errors import RequestError
from peftlab.layers import resolve_device
from peftlab.tasks import answer_file, check_out, read_sheet


def predict_file(
    adapter: Path,
    file: Path,
    out: Path,
    text: Sequence[str] | None = None,
    base: str | None = None,
    device: str = "auto",
    on_batch: Callable[[int, int], None] = lambda n, total: None,
    fast: bool = True,
) -> int:
    """Write the rows of `file` to `out` with the columns `prediction` and, for classes, scores.

    Args:
        adapter: a folder that `peftlab.save` or HF PEFT wrote.
        file: CSV, TSV, JSONL or Parquet.
        out: the file to write, its suffix one of the same.
        text: the columns of the texts; those of training if not given.
        base: where the base lies now, if not where it lay in training.
        device: where to compute.
        on_batch: called with the rows of each batch that is done, and all there are.
        fast: as in `peftlab.evaluate`.

    Returns:
        The number of rows.

    Raises:
        RequestError: for an adapter or a file that is not as it must be.
    """
    check_out(out)
    check_adapter(adapter)
    card = read_card(adapter)
    known = card.task.columns if card and card.task else []
    columns = list(text or known)
    if not columns:
        raise RequestError(
            f"{adapter} does not say which columns hold the texts; name them with --text"
        )
    sheet = read_sheet(file, columns)
    rows = sheet.texts
    labels = card.task.labels if card and card.task else []
    sheet.check_new(["prediction", *(f"score_{name}" for name in labels)])
    place = resolve_device(device).value
    model, tokenizer = load(adapter, base=base)
    model.to(torch.device(place))  # type: ignore[arg-type]
    found = predictions(model, tokenizer, rows, lambda n: on_batch(n, len(rows)), fast)
    extra = [
        {"prediction": answer.prediction}
        | {f"score_{name}": score for name, score in answer.scores.items()}
        for answer in found
    ]
    answer_file(sheet, out, extra)
    return len(rows)
