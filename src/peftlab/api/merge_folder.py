"""Merge an adapter's folder into its base, as a plain transformers folder: `peftlab merge`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from peftlab.adapters import check_adapter, load, plain_folder, read_card
from peftlab.atomic import check_replaceable


class Merged(NamedTuple):
    """How far a logit moves at most against the adapter, and whether on a base in four bits."""

    moved: float
    quantised: bool


def merge_folder(adapter: Path, out: Path, base: str | None = None) -> Merged:
    """Write the merged model to `out`, in fp32.

    Args:
        adapter: a folder that `peftlab.save` or HF PEFT wrote.
        out: a new or empty folder.
        base: where the base lies now, if not where it lay in training.

    Raises:
        RequestError: if the adapter can't be read or merged, or `out` can't be written.
    """
    check_adapter(adapter)
    check_replaceable(out, may_be_adapter=False)
    card = read_card(adapter)
    quantised = card is not None and card.precision == "nf4"
    model, tokenizer = load(adapter, base=base, precision="nf4" if quantised else "fp32")
    return Merged(plain_folder(model, tokenizer, out), quantised)
