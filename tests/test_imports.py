"""What scripts, benchmarks and docs/ import from peftlab exists, and so does what they give it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import peftlab
from peftlab.api.request import arguments_of
from peftlab.settings import Training

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "experiments", "examples", "docs")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_imported_is_there(file: Path) -> None:
    """A benchmark trained for minutes and then could not import the function that scores."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "peftlab":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(
                    f"{node.module}.{alias.name}"
                )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_the_package_is_given_by_name_it_takes(file: Path) -> None:
    """benchmarks/cost.py gave `compare` an argument that it had lost, and ended before a number."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("peftlab."):
            function = getattr(peftlab, ast.unparse(node.func).removeprefix("peftlab."), None)
            if callable(function):
                known = {*arguments_of(function), *Training.model_fields}
                assert {word.arg for word in node.keywords} - {None} <= known
