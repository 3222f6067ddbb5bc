"""What the options of a training make of the words on the command line."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from peftlab.cli import options

REQUESTS: list[options.OptionRequest] = []


@options.with_request
def command(*, request: options.OptionRequest) -> None:
    REQUESTS.append(request)


def given(*words: str) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    training: dict[str, Any] = REQUESTS.pop().fields["training"].given
    return training


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a, b", ["a", "b"]),
        ('"my text, the 1st",b', ["my text, the 1st", "b"]),
        ('b , "my text, the 1st" ', ["b", "my text, the 1st"]),
        ("a line\nbreak,b", ["a line\nbreak", "b"]),
        ('läbel "x", 12" of it', ['läbel "x"', '12" of it']),
        ('"never closed', ['"never closed']),
        (",a,,", ["a"]),
    ],
)
def test_columns_stand_with_commas_between(text: str, names: list[str]) -> None:
    assert options.columns_of(text) == names


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ((), {}),
        (("--no-fast", "--warmup", "0"), {"fast": False, "warmup": 0.0}),
        (("--epochs", "3", "--lr", "1e-3"), {"epochs": 3, "lr": 0.001}),
        (("--batches", "grouped", "--no-parts"), {"batches": "grouped", "parts": False}),
        (("--checkpointing", "--threads", "2"), {"checkpointing": True, "threads": 2}),
    ],
)
def test_what_is_given_is_asked_for_zero_and_false_too(
    words: tuple[str, ...], settings: dict[str, Any]
) -> None:
    assert given(*words) == settings
