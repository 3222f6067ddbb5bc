"""What benchmarks/ measures is what a cell does."""

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
    """A hook on all modules, as the meter had, is a caller's code: the engine stands back."""
    asked = {"model": tiny_model, "task": "words-6", "examples": 64, "score": False, "epochs": 2}
    asked |= {"data_dir": None, "batch_size": 8, "lr": None, "seed": 0, "device": "cpu"}
    asked |= {
        "method": "lora",
        "precision": "auto",
        "no_fast": False,
        "graphs": False,
        "attention": False,
    }
    options = argparse.Namespace(**asked)
    begin, found = Meter.begin, []

    def begun(meter: Meter, model: Any) -> None:
        found.extend(module for module in model.modules() if isinstance(module, FastDropout))
        begin(meter, model)

    monkeypatch.setattr(Loop, "try_widest", Loop.try_widest)  # which `run` replaces
    monkeypatch.setattr(Meter, "begin", begun)
    ours.write_order(options, tmp_path)
    measured = ours.run(options, tmp_path)
    assert found
    assert measured["n_steps"] == 16 and measured["examples_per_s"] > 0
    assert measured["all_mib"] > measured["peak_mib"] >= measured["resident_mib"] > 0
