"""The pages' examples: every command parses, every Python block compiles, and how-tos run.

A how-to is a session: its commands and blocks run one after the other in one folder, on a tiny
model and for one epoch, with the files that it speaks of. Lines that need what is not here (the
hub, GLUE, a GPU, a model to download, minutes) are parsed alone.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from peftlab.bench.suite import Variant
from peftlab.cli import app
from peftlab.methods import make, parse_methods
from peftlab.tasks import Task

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
HOWTOS = [page for page in sorted((ROOT / "docs" / "howto").glob("*.md")) if page.stem != "gpu"]
SESSIONS = [ROOT / "docs" / "start.md", *HOWTOS]
ELSEWHERE = re.compile(r"hub:|roberta-base|GLUE|cuda|path/to|suite.toml|--minutes|peftlab compare$")
LEARNS = ("compare", "plan", "train")
COMMAND = r"^ {4}(?:[A-Z_]+=\S+ )?((?:peftlab|cp|mkdir) [^\n]*)$"
BLOCK = r"^```python\n(.*?)^```$"


def commands(page: Path) -> list[str]:
    """The lines of a page that are commands, without what is said behind them."""
    found = re.findall(COMMAND, page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.split(r" {3,}| +#", line)[0].strip() for line in found]


def blocks(page: Path) -> list[str]:
    return re.findall(BLOCK, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """Commands and blocks of a page in their order, those left out that need what is not here."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(f"{COMMAND}|{BLOCK}", text, re.MULTILINE | re.DOTALL):
        line, block = found.groups()
        if block:
            yield "python", block
        elif not ELSEWHERE.search(line):
            yield "command", line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(page: Path) -> None:
    group = typer.main.get_command(app)
    for line in commands(page):
        program, name, *words = shlex.split(line)
        if program != "peftlab":
            continue
        command = group.commands[name]  # type: ignore[attr-defined]
        given = command.make_context(name, words).params  # refuses what the command has not
        asked = given.get("methods") or given.get("method")
        if asked not in {None, "all"} and not given.get("plugin"):
            for row in map(Variant.model_validate, parse_methods(asked)):
                make(row.name, row.settings)
    for code in blocks(page):
        compile(code, str(page), "exec")


@pytest.fixture
def folder(
    tmp_path: Path,
    tiny_task: Task,
    make_tiny_model: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working folder, with the files that the how-tos speak of."""
    texts = [f"{i} {text.strip()}" for i, (text,) in enumerate(tiny_task.train.texts)]
    names = [tiny_task.labels[label] for label in tiny_task.train.labels]
    stars = [1 + i % 5 for i in range(len(texts))]
    tables = {
        "tickets.csv": ["text,label", *map("{},{}".format, texts, names)],
        "later.csv": ["text,label", *map("later {},{}".format, texts[:12], names[:12])],
        "new.csv": ["text", *texts[:5]],
        "reviews.csv": ["review,stars", *map("{},{}".format, texts, stars)],
    }
    pairs = [
        json.dumps({"question": text, "answer": text, "relevant": name})
        for text, name in zip(texts, names, strict=True)
    ]
    tables |= {"pairs.jsonl": pairs[:36], "held-out.jsonl": pairs[36:]}
    for name, lines in tables.items():
        (tmp_path / name).write_text("\n".join([*lines, ""]), encoding="utf-8")
    method = blocks(ROOT / "docs" / "howto" / "method.md")[0]
    (tmp_path / "norms.py").write_text(method, encoding="utf-8")
    make_tiny_model(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, model: Path) -> None:
    """A page's command, on the tiny model where it names none, and for one epoch."""
    program, name, *words = shlex.split(line.replace("runs/minilm-", f"runs/{model.name}-"))
    if program != "peftlab":
        subprocess.run([program, name, *words], check=True)
        return
    if name in LEARNS:
        words += [] if "--model" in words else ["--model", str(model)]
        words += ["--epochs", "1"]
    done = CliRunner().invoke(app, [name, *words])
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"


@pytest.mark.shown
@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.stem)
@pytest.mark.usefixtures("own_methods_forgotten")
def test_the_commands_and_blocks_of_a_how_to_run_in_their_order(page: Path, folder: Path) -> None:
    done = 0
    for kind, step in steps(page):
        if kind == "python":
            exec(step.replace("runs/minilm-", "runs/my-model-"), {})
        else:
            run(step, folder / "my-model")
        done += 1
    assert done >= 3
