"""A method of the user's own in compare: its class reaches the cells, its code is in their name."""

from __future__ import annotations

import importlib
import json
import linecache
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from transformers import PreTrainedModel

import peftlab
from peftlab.bench.own_method import definitions, own_method, source_hash
from peftlab.methods import METHODS, Method, injected, make, register, train_head_only
from peftlab.methods.base import Step
from peftlab.tasks import Task

METHOD = """
from __future__ import annotations
import sys
from typing import ClassVar
import peftlab
from peftlab.layers import LoRALinear, replace_linears
from peftlab.methods import STRICT, train_head_only
from peftlab.models import find_targets
from pydantic import Field
from pydantic.dataclasses import dataclass
from words import TARGETS  # a file beside the script

SCALING = 2.0

class MyLinear(LoRALinear):
    def forward(self, x):
        return super().forward(x)

@dataclass(frozen=True, config=STRICT)
class Mine(peftlab.Method):
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "a low-rank update"
    paper: ClassVar[str] = "my own"
    default_lr: ClassVar[float] = 2e-3
    rank: int = Field(default=4, ge=1)

    def inject(self, model):
        targets = find_targets(model, TARGETS)
        train_head_only(model)
        replace_linears(
            model, targets.names, lambda base: MyLinear(base, self.rank, SCALING, 0.0)
        )
        return targets
"""
SCRIPT = (
    METHOD
    + """
print("the script runs")
records = peftlab.compare(
    model={model!r}, tasks=[peftlab.Task.read({task!r})], out={out!r}, epochs=1, batch_size=8,
    seeds={seeds!r}, methods=[Mine(), Mine(rank=2), {{"name": "lora", "alpha": 8.0, "rank": 4}}],
)
for record in records:
    print(record.failure or record.status)
"""
)


def _run(folder: Path, model: Path, seeds: list[int]) -> subprocess.CompletedProcess[str]:
    text = SCRIPT.format(
        model=str(model), task=folder / "task.json", out=str(folder / "out"), seeds=seeds
    ).replace("PosixPath", "__import__('pathlib').Path")
    (folder / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, folder / "script.py"], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_class_of_a_bare_script_works_in_its_cells(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    """Without `if __name__ == "__main__"`; what the class uses of the script and beside it."""
    tiny_task.write(tmp_path / "task.json")
    (tmp_path / "words.py").write_text('TARGETS = "query,value"\n')
    first = _run(tmp_path, tiny_model, [0])
    assert first.stdout.splitlines() == ["the script runs", "done", "done", "done"], first.stderr
    by_label = {}
    for path in (tmp_path / "out" / "records").iterdir():
        record = json.loads(path.read_text())
        by_label[record["method"]["label"]] = record
    assert set(by_label) == {"mine", "mine[rank=2]", "lora[alpha=8.0,rank=4]"}
    assert by_label["mine"]["score"] == by_label["lora[alpha=8.0,rank=4]"]["score"]
    assert re.fullmatch(r"[0-9a-f]{64}", by_label["mine"]["method"]["source_sha256"])
    assert by_label["lora[alpha=8.0,rank=4]"]["method"]["source_sha256"] is None
    assert "[1/3] tiny · mine · seed 0" in first.stderr


def test_a_cell_is_another_when_its_method_s_code_is() -> None:
    """And when it is not the method's, it is not."""
    wanted = definitions(METHOD, "Mine")
    assert "class MyLinear" in wanted
    assert "SCALING = 2.0" in wanted
    assert "import sys" not in wanted
    for same in (METHOD + "\nrecords = Mine()\n", METHOD.replace("  # a file beside", "  # where")):
        assert definitions(same, "Mine") == wanted
    for changed in ("SCALING = 3.0", "SCALING = float(2)"):
        assert definitions(METHOD.replace("SCALING = 2.0", changed), "Mine") != wanted
    assert definitions(METHOD.replace("return super", "return 2 * super"), "Mine") != wanted


def _defined(text: str, file: str) -> type[Method]:
    """The class `Mine` of `text`, run as if it stood in `file`."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(
        compile(text.replace("from words import TARGETS", "TARGETS = 'query'"), file, "exec"), names
    )
    found: type[Method] = names["Mine"]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        'CONFIG["scale"] = {}',
        "CONFIG.update(scale={})",
        "Mine.rank = {}",
        'setattr(Mine, "rank", {})',
        "for _ in range(1):\n    CONFIG.setdefault({})",
        "del CONFIG[{}]",
    ],
)
def test_what_is_changed_in_place_is_part_of_the_code(changes: str) -> None:
    text = "import peftlab\nCONFIG = {{}}\nclass Mine(peftlab.Method):\n    scale = CONFIG\n{}\n"
    one, other = (definitions(text.format(changes.format(n)), "Mine") for n in (1, 1000))
    assert "1000" not in one and "1000" in other


def test_the_rest_of_a_script_is_no_part_of_the_code() -> None:
    text = "import peftlab\nclass Mine(peftlab.Method):\n    rank = 1\n"
    text += "    def inject(self, model):\n        print(model)\n"
    rest = "peftlab.compare(seeds=[1])\nother = {}\nother.update(a=1)\nprint(Mine.rank)\n"
    rest += "for rank in (1, 2): model = peftlab.load_model(rank)\n"
    assert definitions(text + rest, "Mine") == definitions(text, "Mine")


def test_a_file_that_was_changed_in_a_session_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "of_mine.py"
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for scaling in ("2.0", "1000.0"):
        file.write_text(METHOD.replace("SCALING = 2.0", f"SCALING = {scaling}"))
        (tmp_path / "words.py").write_text('TARGETS = "query"\n')
        module = sys.modules.pop("of_mine", None)
        module = importlib.import_module("of_mine")
        hashes.append(source_hash(module.Mine))
    sys.modules.pop("of_mine"), sys.modules.pop("words")
    assert hashes[0] != hashes[1]


def test_a_class_of_a_notebook_s_cell_has_a_source() -> None:
    text = METHOD.replace("from words import TARGETS", "TARGETS = 'query'")
    linecache.cache["<cell 7>"] = (len(text), None, text.splitlines(keepends=True), "<cell 7>")
    found = _defined(METHOD, "<cell 7>")
    assert source_hash(found)
    assert own_method(found) is not None


def test_what_other_cells_of_a_notebook_define_is_part_of_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A helper that was redefined in a cell of its own gave back the old one's results."""
    linear = METHOD[METHOD.index("class MyLinear") : METHOD.index("@dataclass")]
    mine = METHOD.replace("SCALING = 2.0", "").replace(linear, "")
    mine = mine.replace("from words import TARGETS", "TARGETS = 'query'")

    module = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    module.In = []  # type: ignore[attr-defined]  # what IPython calls the cells that ran

    def hashed(*cells: str) -> str | None:
        for cell in cells:
            module.In.append(cell)
            file = f"<cell {len(module.In)} of notebook>"
            exec(compile(cell, file, "exec"), vars(module))
        return source_hash(module.Mine)

    imports = "from peftlab.layers import LoRALinear\nTWICE = 2\nSETTINGS = {'scale': None}\n"
    helper = imports + linear.replace("forward(x)", "forward(TWICE * x)")
    first = hashed(helper, "SCALING = 2.0", mine)
    assert first is not None
    same = (helper, mine, "OTHER = 2", "SCALING = 2.0", "rank = 3\nfor base in (1, 2): print(base)")
    assert [hashed(cell) for cell in same] == [first] * len(same)  # run again, or no part of it
    changes = [
        "SCALING = 3.0",
        "TWICE = 3",
        "SCALING = 2.0 * TWICE",
        helper.replace("TWICE * x", "x"),
        mine.replace("rank: int = Field(default=4", "rank: int = Field(default=5"),
    ]
    seen = [first, *(hashed(cell) for cell in changes)]
    assert len(set(seen)) == len(seen)
    assert hashed(helper, "SCALING = 2.0", mine) == first
    of_fields = "class Scales:\n    first = 2.0\n    second = None\n"
    uses = "SCALING = Scales.first"
    assert hashed(of_fields, uses) != hashed(of_fields.replace("2.0", "3.0"), uses)


def test_a_class_without_a_source_is_refused(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    mine = _defined(METHOD, "<string>")
    with pytest.raises(peftlab.RequestError, match="define it in a file or a notebook's cell"):
        peftlab.compare(model=tiny_model, tasks=tiny_task, methods=mine(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    METHODS.pop("mine")


LOCK = threading.Lock()


class Mine(Method):
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "the head"
    paper: ClassVar[str] = "none"
    default_lr: ClassVar[float] = 1e-3

    def inject(self, model: PreTrainedModel) -> None:
        train_head_only(model)


class Locked(Mine):
    """Holds on to what can't leave a process."""

    name: ClassVar[str] = "locked"

    def inject(self, model: PreTrainedModel) -> None:
        with LOCK:
            super().inject(model)


class Wrong(Mine):
    """Fails where it is tried, before anything trains."""

    name: ClassVar[str] = "wrong"

    def inject(self, model: PreTrainedModel) -> None:
        model.get_submodule("no.such")  # raises inside torch


def test_an_error_of_its_own_code_is_told_with_its_place(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    """It was "error inside peftlab", as if the method were not the user's."""
    lines = Path(__file__).read_text().splitlines()
    (at,) = (
        number for number, line in enumerate(lines, 1) if line.endswith("# raises inside torch")
    )
    place = re.escape(f"(line {at} of Wrong's file, in inject)")
    for call in (peftlab.compare, peftlab.plan):
        with pytest.raises(peftlab.RequestError, match=f"wrong on .* own code failed: .*{place}"):
            call(model=tiny_model, tasks=tiny_task, methods=Wrong(), out=tmp_path / "out")
    METHODS.pop("wrong")


class Late(Mine):
    """Fails in its cell, at the first step."""

    name: ClassVar[str] = "late"

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        raise KeyError("late")  # in a cell


def test_an_error_in_a_cell_is_told_with_its_place(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And its traceback is a debug message, which --debug shows: there was none anywhere."""
    caplog.set_level(logging.DEBUG, "peftlab")
    lines = Path(__file__).read_text().splitlines()
    (at,) = (number for number, line in enumerate(lines, 1) if line.endswith("# in a cell"))
    (record,) = peftlab.compare(
        model=tiny_model, tasks=tiny_task, methods=Late(), out=tmp_path / "out", quiet=True
    )
    assert record.failure is not None
    assert record.failure.kind == "KeyError"
    assert record.failure.message == f"'late' (line {at} of Late's file, in before_step)"
    assert "Traceback" in caplog.text and "in before_step" in caplog.text
    METHODS.pop("late")


def test_what_can_not_be_sent_is_explained() -> None:
    with pytest.raises(peftlab.RequestError, match="Locked can't be sent to a cell's process"):
        own_method(Locked)


def test_peftlab_s_own_are_not_sent() -> None:
    for method in METHODS.values():
        assert own_method(method) is None
        assert source_hash(method) is None


def test_a_name_of_peftlab_s_own_is_not_taken() -> None:
    with pytest.raises(peftlab.RequestError, match="can't be called 'lora', as peftlab's LoRA is"):
        register(type("Mine", (peftlab.LoRA,), {}))
    with pytest.raises(peftlab.RequestError, match=r"Mine lacks name, summary, paper, default_lr"):
        register(type("Mine", (Method,), {}))


def test_an_adapter_of_an_own_method_is_loaded_where_its_class_is_known(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(METHODS, "locked", raising=False)
    model, _ = peftlab.load_model(tiny_model)
    peftlab.inject(model, Locked())
    peftlab.save(model, tmp_path / "adapter")
    with pytest.raises(peftlab.RequestError, match=r"unknown method 'locked'.*register"):
        peftlab.load(tmp_path / "adapter")
    peftlab.register(Locked)
    again, _ = peftlab.load(tmp_path / "adapter")
    assert injected(again) == Locked() == make("locked")
    METHODS.pop("locked")
