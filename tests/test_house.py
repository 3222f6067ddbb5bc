"""The rules of the house: who may import whom, what stays light, what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import peftlab
from peftlab.methods import METHODS

SRC = Path(peftlab.__file__).parent
# every room may import these
LEAVES = {"errors", "atomic", "cache", "labels", "naming", "network", "settings"}
ROOMS = {
    "cli": {"api", "report", "records"},  # api returns records
    "api": {
        *("bench", "adapters", "records", "report", "machine"),
        *("methods", "models", "tasks", "layers", "training"),
    },
    "bench": {"training", "adapters", "methods", "tasks", "models", "layers", "records", "machine"},
    "adapters": {"methods", "models", "layers"},
    "methods": {"models", "layers"},
    "training": {"engine", "layers"},
    "engine": {"models", "layers"},
    "models": {"layers"},
    "report": {"records"},
    "machine": {"records", "layers"},
    "records": set(),
    "layers": set(),
    "tasks": set(),
    "errors": set(),
    "atomic": {"errors"},
    "cache": set(),
    "labels": set(),
    "naming": set(),
    "network": {"errors"},
    "settings": {"errors"},
}


def _room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("peftlab"):
            names |= (
                {f"peftlab.{alias.name}" for alias in node.names}
                if node.module == "peftlab"
                else {node.module}
            )
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("peftlab.")}
    return names


def test_imports_point_one_way() -> None:
    for path in SRC.rglob("*.py"):
        room = _room(path)
        if room in {"__init__", "__main__"}:
            continue
        allowed = ROOMS[room] | LEAVES | {room}
        for name in _imports(path):
            assert name.split(".")[1] in allowed, f"{path.relative_to(SRC)} imports {name}"


def test_methods_import_no_other_method() -> None:
    files = {method.__module__: method for method in METHODS.values()}
    assert len(files) == len(METHODS)  # one file a method
    shared = {f"peftlab.methods.{name}" for name in ("base", "low_rank", "peft")}
    for path in (SRC / "methods").glob("*.py"):
        if f"peftlab.methods.{path.stem}" in files:
            imported = {name for name in _imports(path) if name.startswith("peftlab.methods")}
            assert imported <= shared | {"peftlab.methods.registry"}, path


def _modules_after(code: str) -> set[str]:
    code = f"{code}; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_peftlab_and_its_command_line_does_not_import_torch() -> None:
    assert "torch" not in _modules_after("import peftlab, peftlab.cli")


def test_a_request_is_read_without_the_classes_of_models() -> None:
    """They take 2 s to import, and scipy.stats .5; a wrong request fails before that."""
    heavy = {"transformers.modeling_utils", "scipy.stats", "sklearn", "datasets"}
    assert not heavy & _modules_after("import peftlab.api.compare, peftlab.api.fit")


def test_importing_what_reports_need_does_not_import_torch() -> None:
    heavy = {"torch", "transformers", "datasets", "sklearn", "pandas", "altair"}
    assert not heavy & _modules_after("import peftlab.report, peftlab.records.store")


def test_public_names_are_there() -> None:
    for name in [*peftlab.__all__, "LoRA", "FullFineTuning", "HeadOnly", "BitFit"]:
        assert getattr(peftlab, name) is not None
    assert not hasattr(peftlab, "Nonsense")
