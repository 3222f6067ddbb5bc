"""The pages' examples: every command parses, every Python block compiles, and how-tos run.

A how-to is a session: its commands run one after the other in one folder, on a tiny model and for
one epoch, with the files that it speaks of. Lines that need what is not here (the hub, GLUE, a GPU,
a model to download, another machine's folder) are parsed alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from peftlab.cli import app
from peftlab.methods import METHODS, parse_methods
from peftlab.tasks import Task

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SESSIONS = ["start.md"]
ELSEWHERE = re.compile(r"hub:|roberta-base|mpnet|GLUE|cuda|path/to|minutes|--task[s]? \w")
LEARNS = ("compare", "plan", "fit", "train")


def commands(page: Path) -> list[str]:
    """The lines of a page that are commands, without what is said behind them."""
    lines = re.findall(r"^ {4}(peftlab .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.split(r" {3,}| +#", line)[0].strip() for line in lines]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def built_in_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is forgotten after the test."""
    monkeypatch.setattr("peftlab.methods.registry.METHODS", dict(METHODS))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(page: Path) -> None:
    group = typer.main.get_command(app)
    for line in commands(page):
        _, name, *words = shlex.split(line)
        command = group.commands[name]  # type: ignore[attr-defined]
        given = command.make_context(name, words).params  # refuses what the command has not
        if not given.get("plugin"):
            parse_methods(given.get("methods") or given.get("method") or "lora")
    for code in blocks(page):
        compile(code, str(page), "exec")


@pytest.fixture
def files(tmp_path: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the how-tos speak of; it is the working folder."""
    texts = [f"{i} {text}" for i, (text,) in enumerate(tiny_task.train.texts)]
    names = [tiny_task.labels[label] for label in tiny_task.train.labels]
    stars = [1 + i % 5 for i in range(len(texts))]
    tables = {
        "tickets.csv": ("text,label", [f"{a},{b}" for a, b in zip(texts, names, strict=True)]),
        "new.csv": ("text", texts[:5]),
        "reviews.csv": ("review,stars", [f"{a},{b}" for a, b in zip(texts, stars, strict=True)]),
    }
    pairs = [
        f'{{"question": "{text}", "answer": "{text}", "relevant": "{name}"}}'
        for text, name in zip(texts, names, strict=True)
    ]
    for name, (head, rows) in tables.items():
        (tmp_path / name).write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs[:36]), encoding="utf-8")
    (tmp_path / "held-out.jsonl").write_text("\n".join(pairs[36:]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, model: Path) -> str:
    """What a page's command prints, on the tiny model and for one epoch."""
    _, name, *words = shlex.split(line)
    if name in LEARNS and "--model" not in words:
        words += ["--model", str(model)]
    if name in LEARNS and "--epochs" not in words:
        words += ["--epochs", "1"]
    done = CliRunner().invoke(app, [name, *words])
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    return done.output


def here(page: Path) -> Iterator[str]:
    """The commands of a page that can run without anything from elsewhere."""
    return (line for line in commands(page) if len(line.split()) > 2 and not ELSEWHERE.search(line))


@pytest.mark.parametrize("name", SESSIONS)
@pytest.mark.usefixtures("built_in_methods")
def test_the_commands_of_a_how_to_run_in_their_order(
    name: str, files: Path, tiny_model: Path
) -> None:
    page = ROOT / "docs" / name
    lines = list(here(page))
    assert lines
    for line in lines:
        run(line, tiny_model)
    for code in blocks(page):
        exec(code, {})
