"""The documentation says what the code does: generated pages are current, examples run."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import generate
import pytest
import torch
import typer

import peftlab
from peftlab.api.listings import format_setting
from peftlab.cli import app
from peftlab.layers import Adapter
from peftlab.methods import METHODS, InPeft
from peftlab.tasks import built_in

ROOT = Path(__file__).parents[2]


def test_generated_pages_are_current() -> None:
    for page, write in generate.PAGES.items():
        assert (ROOT / "docs" / page).read_text(encoding="utf-8") == write(), "run `make docs`"


def test_every_public_name_is_documented_with_what_it_takes_and_raises() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in peftlab.__all__[1:]:
        assert f"\n## peftlab.{name}\n" in page
        thing = getattr(peftlab, name)
        told = inspect.getdoc(thing) or ""
        assert told, name
        if inspect.isfunction(thing):
            assert "\nRaises:\n" in told, name
            arguments = re.search(r"\nArgs:\n(.*?)(\n\n|$)", told, re.DOTALL)
            if arguments is not None:
                named = re.findall(r"^    (\w+): ", arguments[1], re.MULTILINE)
                assert named == list(inspect.signature(thing).parameters), name


def test_every_command_and_option_has_help() -> None:
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_every_method_has_a_card_with_its_settings() -> None:
    for name, method in METHODS.items():
        card = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert card.startswith(f"# {name}\n")
        assert method.paper.removeprefix("arXiv:") in card
        for part in ("Paper", "Trains", "Cost", "When to use", "What it can't"):
            assert f"\n- **{part}:** " in card, f"{name}: {part}"
        assert re.search(r"^ {4}\S.*(=|←)", card, re.MULTILINE), f"{name}: no formula"
        assert ("in HF PEFT's layout" in card) == issubclass(method, InPeft), name
        for setting, default in method().settings.items():
            row = re.search(rf"^\| `{setting}` \| `?([^|`]+)`? \|", card, re.MULTILINE)
            assert row is not None, f"{name}: {setting}"
            assert row[1].strip() == format_setting(default)


def test_every_built_in_task_is_documented() -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    for name in built_in():
        assert f"| `{name}` |" in page


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_python_of_the_adapters_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"peftlab": importlib.import_module("peftlab")}
    exec(code, names)
    assert len(names["errors"]) == 12  # type: ignore[arg-type]  # six layers' query and value


@pytest.fixture
def own_method() -> str:
    """The code of the page about a method of one's own."""
    page = (ROOT / "docs" / "methods" / "own.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return str(code)


def test_the_method_of_one_s_own_on_its_page_is_a_method(
    own_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftlab.methods.registry.METHODS", dict(METHODS))
    exec(own_method, {})
    model, _ = peftlab.load_model("minilm", precision="fp32")
    peftlab.inject(model, "scaled")
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    assert len(adapters) == 18  # six layers' key, value and ffn-in
    torch.nn.init.uniform_(adapters[0].scale, 0.5, 1.5)
    x = torch.randn(3, 384)
    torch.testing.assert_close(adapters[0](x), adapters[0].merged()(x))


@pytest.mark.shown
def test_it_is_a_plugin_of_the_command_line(
    own_method: str, tiny_model: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    (tmp_path / "scaled.py").write_text(own_method, encoding="utf-8")

    def run(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "peftlab", *map(str, words), "--plugin", "scaled.py"],
            **{"cwd": tmp_path, "capture_output": True, "text": True, "check": False},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    data = ["--data", tiny_csv, "--text", "sentence", "--label", "answer", "--epochs", "1"]
    rows = ["--methods", "scaled,scaled[targets=value]", "--model", tiny_model, "--seeds", "0"]
    records = json.loads(run("compare", *data, *rows, "--json", "--out", "out"))["records"]
    assert [record["status"] for record in records] == ["done"] * 2
    trained = [record["n_trainable"]["adapter"] for record in records]
    assert trained == [2 * (32 + 32 + 48), 2 * 32]
    run("export", "out", "--to", "best", "--method", "scaled")
    run("predict", "best", tiny_csv, "--out", "answers.csv")
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 49


@pytest.mark.shown
def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    record = names["record"]
    assert record.status == "done"  # type: ignore[attr-defined]
    assert (tmp_path / "runs").is_dir()
