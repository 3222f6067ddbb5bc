"""The benchmarks measure a cell as it runs outside of them."""

from __future__ import annotations

import argparse
import functools
import os
import re
from pathlib import Path
from typing import Any

import ours
import parts
import pytest
import sides
from meter import CLEAR, Meter
from torch.utils._python_dispatch import TorchDispatchMode

from peftlab.engine import block, fast
from peftlab.engine.dropout import FastDropout
from peftlab.engine.frozen import FrozenLinear
from peftlab.methods import inject
from peftlab.training import Loop
from tiny import batch, tiny


@pytest.mark.skipif(
    not (CLEAR.exists() and os.access(f"/proc/{os.getppid()}/smaps_rollup", os.R_OK)),
    reason="reads and resets memory by /proc",
)
def test_our_side_is_measured_inside_the_engine(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine leaves a model as it is while all modules have a hook, as the meter once set."""
    options = argparse.Namespace(
        model=tiny_model, task="words-6", data_dir=None, examples=64, score=False, epochs=2,
        batch_size=8, lr=None, seed=0, device="cpu", method="lora", precision="auto",
        no_fast=False, graphs=False, attention=False,
    )  # fmt: skip
    begin, dropouts = Meter.begin, []

    def begin_and_look(meter: Meter, model: Any) -> None:
        dropouts.extend(module for module in model.modules() if isinstance(module, FastDropout))
        begin(meter, model)

    monkeypatch.setattr(Loop, "try_widest", Loop.try_widest)  # put back after `run` replaces it
    monkeypatch.setattr(Meter, "begin", begin_and_look)
    ours.write_cell(options, tmp_path)
    measured = ours.run(options, tmp_path)
    assert dropouts
    assert measured["n_steps"] == 16 and measured["examples_per_s"] > 0
    assert measured["all_mib"] > measured["peak_mib"] >= measured["resident_mib"] > 0


def test_the_table_of_parts_has_a_row_for_each(tiny_model: Path) -> None:
    options = argparse.Namespace(task="words-6", data_dir=None, examples=128, score=False)
    title, header, *rows, _ = parts.table(str(tiny_model), sides.make_task(options), rounds=6)
    assert "words-6" in title and "95 %" in header
    assert [row[:47].strip() for row in rows] == list(parts.WITHOUT)[1:]
    for row in rows:
        ms, ratio, low, high = map(float, re.findall(r"\d+\.\d+", row[47:]))
        assert ms > 0 and 0 < low <= ratio <= high


class Operations(TorchDispatchMode):
    """The names of the operations in C++ that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "peftlab":
            self.names.add(func._opname)
        return func(*args, **kwargs or {})


OPERATIONS = {  # one that only this file computes
    "attention": "sentences.cpp",
    "gelu": "gelu.cpp",
    "low_rank": "low_rank.cpp",
    "product": "products.cpp",
    "residual_norm": "dropout.cpp",
}


def used_parts(model: Any, without: str) -> set[str]:
    with parts.WITHOUT[without](), fast(model, without != parts.ALL), Operations() as operations:
        model(**batch()).logits.sum().backward()
        used = {OPERATIONS[name] for name in operations.names & OPERATIONS.keys()}
        if any(isinstance(module, FrozenLinear) for module in model.modules()):
            used.add("frozen.py")
        first = model.base_model.encoder.layer[0]
        for forward in (first.forward, first.attention.self.forward):
            if isinstance(forward, functools.partial) and forward.func.__module__ == block.__name__:
                used.add("block.py")
    return used


@pytest.mark.parametrize("without", parts.WITHOUT)
def test_a_part_that_is_left_out_does_nothing(without: str) -> None:
    """What is there after all would be said to gain nothing."""
    model = inject(tiny(p=0.1), "lora").train()
    everything = used_parts(model, parts.NOTHING)
    named = everything if without == parts.ALL else set(re.findall(r"\w+\.(?:py|cpp)", without))
    assert everything - used_parts(model, without) == named & everything
