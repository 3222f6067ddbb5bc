"""The table on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from peftlab.report import render_terminal, table

GOLDEN = Path(__file__).parent / "golden"


def shown(records, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_terminal(table(records)))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("width", [100, 60])
def test_golden(suite, width):
    """A narrow terminal gets two tables. When one should change, write it anew, read the diff."""
    expected = (GOLDEN / f"terminal-{width}.txt").read_text(encoding="utf-8")
    assert shown(suite, width) == expected


def test_one_seed_has_no_spread_and_says_so(record):
    text = shown([record(score=0.8612)])
    assert ".861" in text and "±" not in text
    assert "one seed, so no spread can be given" in text


def test_another_number_of_seeds_is_said_in_the_cell(record):
    records = [record("full", seed=seed) for seed in range(3)] + [record("lora", seed=0)]
    assert "n = 1" in shown(records) and "over 3 seeds" in shown(records)


def test_not_measured_is_a_dash(record):
    text = shown([record(memory=None, speed=None, total_s=None, n_trainable=None)])
    assert text.splitlines()[5].split()[2:] == ["–"] * 5


def test_failures_say_which_and_why(record, failed):
    text = shown([record(seed=0), failed(seed=1, message="out of memory")])
    assert "1 of 2 failed" in text
    assert "lora, mrpc, seed 1: Diverged: out of memory" in text


def test_names_are_neither_markup_nor_control_codes(record, failed):
    text = shown(
        [record(label="lora[rank=16]"), failed(seed=1, message="\x1b[2Jgone [red]x[/red]")]
    )
    assert "lora[rank=16]" in text
    assert "[red]x[/red]" in text and "\x1b" not in text
