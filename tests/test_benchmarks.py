"""The benchmarks measure a cell as it runs outside of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import ours
import pytest
from meter import CLEAR, Meter

from peftlab.engine.dropout import FastDropout
from peftlab.training import Loop


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
