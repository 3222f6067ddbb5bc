"""The public names as a caller in Python uses them, and the arguments that they refuse."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pandas import DataFrame

import peftlab
from peftlab.methods import METHODS
from peftlab.tasks import Examples, Task

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return peftlab.load_model(str(tiny_model))


def test_dir_has_every_public_name_and_imports_no_torch() -> None:
    code = "import sys, peftlab; print(*dir(peftlab)); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imports_torch = run.stdout.splitlines()
    classes = {method.__name__ for method in METHODS.values() if method.__module__ != __name__}
    assert {*peftlab.__all__, *classes} <= set(names.split())
    assert imports_torch == "False"


def test_type_checkers_see_the_public_names() -> None:
    """py.typed promises types; without the imports under TYPE_CHECKING every name is Any."""
    assert (resources.files("peftlab") / "py.typed").is_file()
    tree = ast.parse(Path(peftlab.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    modules = {
        alias.asname: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert modules == peftlab._HOMES


Call = Callable[[Any, Any], object]
TRAIN, DEV = Examples([("a",), ("c",)], [0, 1]), Examples([("b",), ("d",)], [1, 0])
TASK = Task("t", "classes", ("accuracy",), TRAIN, DEV, labels=("x", "y"))

WRONG: dict[str, tuple[Call, str]] = {
    "load_model name": (lambda m, t: peftlab.load_model(5), "name must be a path"),
    "load_model outputs": (lambda m, t: peftlab.load_model("minilm", "2"), "num_labels must be"),
    "load_model true": (lambda m, t: peftlab.load_model("minilm", True), "num_labels must be"),
    "load_model no outputs": (lambda m, t: peftlab.load_model("minilm", 0), "must be >= 1"),
    "load_model precision": (lambda m, t: peftlab.load_model("minilm", 2, 16), "precision must be"),
    "load_model seed": (lambda m, t: peftlab.load_model("minilm", seed="x"), "seed must be"),
    "inject model": (lambda m, t: peftlab.inject(3, "lora"), "model must be"),
    "inject method": (lambda m, t: peftlab.inject(m, 3), "method must be a name"),
    "inject class": (lambda m, t: peftlab.inject(m, peftlab.LoRA), r"call it: LoRA\(\)"),
    "inject backbone": (lambda m, t: peftlab.inject(m.bert, "lora"), "must have a head"),
    "train model": (lambda m, t: peftlab.train(None, t, TASK, "lora"), "model must be"),
    "train tokenizer": (lambda m, t: peftlab.train(m, None, TASK, "lora"), "tokenizer must be"),
    "train task": (lambda m, t: peftlab.train(m, t, 5, "lora"), "task must be a name or a Task"),
    "train method": (lambda m, t: peftlab.train(m, t, TASK, 5), "method must be a name"),
    "train epochs": (lambda m, t: peftlab.train(m, t, TASK, "lora", epochs="3"), "epochs must be"),
    "train lr": (lambda m, t: peftlab.train(m, t, TASK, "lora", lr="x"), "lr must be"),
    "train seed": (lambda m, t: peftlab.train(m, t, TASK, "lora", seed="x"), "seed must be"),
    "train low seed": (lambda m, t: peftlab.train(m, t, TASK, "lora", seed=-1), "seed must be"),
    "train out": (lambda m, t: peftlab.train(m, t, TASK, "lora", out=5), "out must be a path"),
    "train threads": (lambda m, t: peftlab.train(m, t, TASK, "lora", threads="2"), "threads must"),
    "train unknown": (lambda m, t: peftlab.train(m, t, TASK, "lora", epoch=3), "mean 'epochs'"),
    "train sed": (
        lambda m, t: peftlab.train(m, t, TASK, "lora", sed=3),
        "did you mean 'seed'",
    ),
    "evaluate model": (lambda m, t: peftlab.evaluate("minilm", t, TASK), "model must be"),
    "evaluate tokenizer": (lambda m, t: peftlab.evaluate(m, 5, TASK), "tokenizer must be"),
    "evaluate task": (lambda m, t: peftlab.evaluate(m, t, ["cola"]), "task must be a name"),
    "evaluate fast": (lambda m, t: peftlab.evaluate(m, t, TASK, "no"), "fast must be True"),
    "predict texts": (lambda m, t: peftlab.predict(m, t, 5), "texts must be a list"),
    "predict one text": (lambda m, t: peftlab.predict(m, t, "a text"), "texts must be a list"),
    "predict table": (lambda m, t: peftlab.predict(m, t, {"a": "b"}), "texts must be a list"),
    "predict frame": (lambda m, t: peftlab.predict(m, t, DataFrame({"a": ["b"]})), "got a table"),
    "predict numbers": (lambda m, t: peftlab.predict(m, t, [1.5]), "texts must be a list"),
    "predict triples": (lambda m, t: peftlab.predict(m, t, [("a", "b", "c")]), "texts must be"),
    "save model": (lambda m, t: peftlab.save({}, "x"), "model must be"),
    "save folder": (lambda m, t: peftlab.save(m, 5), "folder must be a path"),
    "save rank": (lambda m, t: peftlab.save(m, "x", rank="2"), "rank must be"),
    "load folder": (lambda m, t: peftlab.load(7), "folder must be a path"),
    "load base": (lambda m, t: peftlab.load("x", base=7), "base must be a folder"),
    "load precision": (lambda m, t: peftlab.load("x", precision=7), "precision must be"),
    "merge": (lambda m, t: peftlab.merge(3), "model must be"),
    "unmerge": (lambda m, t: peftlab.unmerge(t), "model must be"),
    "compare suite": (lambda m, t: peftlab.compare(5), "suite must be a path"),
    "compare model": (lambda m, t: peftlab.compare(model=m), "model must be a path"),
    "compare tasks": (lambda m, t: peftlab.compare(tasks=5), "a task is a name"),
    "compare methods": (lambda m, t: peftlab.compare(methods=[5]), "a method is a name"),
    "compare class": (lambda m, t: peftlab.compare(methods=[peftlab.LoRA]), "a method is a name"),
    "compare seeds": (lambda m, t: peftlab.compare(seeds="abc"), "got 'abc'"),
    "compare seed": (lambda m, t: peftlab.compare(seeds=[0.5]), "got 0.5"),
    "compare out": (lambda m, t: peftlab.compare(out=5), "out must be a path"),
    "compare data_dir": (lambda m, t: peftlab.compare(data_dir=5), "data_dir must be a path"),
    "compare method": (lambda m, t: peftlab.compare(method="lora"), "did you mean 'methods'"),
    "compare keep": (lambda m, t: peftlab.compare(keep=5), "unknown keep '5'"),
    "compare epochs": (lambda m, t: peftlab.compare(epochs="3"), "epochs must be"),
    "compare data": (lambda m, t: peftlab.compare(data=5, text="a", label="b"), "path must be"),
    "compare text": (lambda m, t: peftlab.compare(data="f.csv", text=5, label="b"), "text must be"),
    "compare label": (lambda m, t: peftlab.compare(data="f.csv", text="a", label=5), "label must"),
    "compare dev": (lambda m, t: peftlab.compare(data="f", text="a", label="b", dev=5), "dev must"),
    "compare kind": (lambda m, t: peftlab.compare(data="f", text="a", label="b", kind=5), "kind"),
    "show folder": (lambda m, t: peftlab.show(5), "folder must be a path"),
    "show margin": (lambda m, t: peftlab.show("x", margin="1"), "margin must be a number"),
    "show memory": (lambda m, t: peftlab.show("x", memory_mib="8GiB"), "memory_mib must be"),
    "show methods": (lambda m, t: peftlab.show("x", methods=5), "methods must be a name"),
    "show last": (lambda m, t: peftlab.show("x", last="y"), "last must be True or False"),
    "show a method": (lambda m, t: peftlab.show("x", methods=[peftlab.LoRA()]), "methods must be"),
    "show no task": (lambda m, t: peftlab.show("x", tasks=[]), "tasks must be a name"),
    "show a task": (lambda m, t: peftlab.show("x", tasks=[TASK]), "tasks must be a name"),
    "verdicts": (lambda m, t: peftlab.verdicts(None), "give a folder, folders or records"),
    "verdicts memory": (lambda m, t: peftlab.verdicts("x", memory_mib="2"), "memory_mib must be"),
    "fit minutes": (
        lambda m, t: peftlab.fit(task=TASK, out="x", model=m.name_or_path, minutes="5"),
        "minutes must be a number",
    ),
    "a task's length": (
        lambda m, t: dataclasses.replace(TASK, max_length=0),
        "max_length must be greater than or equal to 4",
    ),
    "two lengths": (
        lambda m, t: peftlab.compare(
            model=m.name_or_path, tasks=[TASK, dataclasses.replace(TASK, max_length=8)]
        ),
        "two tasks are called 't' and differ",
    ),
    "load_records": (lambda m, t: peftlab.load_records(5), "folder must be a path"),
    "make_task": (lambda m, t: peftlab.make_task(5), "table must be a DataFrame"),
    "export task": (lambda m, t: peftlab.export("x", "y", task=5), "task must be a name"),
    "a method's setting": (lambda m, t: peftlab.LoRA(rank="8"), "lora: rank must be"),
    "no such setting": (lambda m, t: peftlab.LoRA(rnak=8), "did you mean 'rank'"),
    "a task's field": (lambda m, t: Task(5, "classes", (), TRAIN, DEV), "name must be"),
    "examples": (lambda m, t: Examples("abc", [0]), "texts must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_a_request_error(
    name: str, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    call, message = WRONG[name]
    with pytest.raises(peftlab.RequestError, match=message):
        call(*loaded)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_s_are_numbers(tiny_model: Path, tiny_task: Task) -> None:
    """The number of classes of a table is its largest label and one: numpy's."""
    model, tokenizer = peftlab.load_model(str(tiny_model), num_labels=np.int64(2), seed=np.int64(0))
    method = peftlab.LoRA(rank=np.int64(2))
    settings = {"epochs": np.int64(1), "batch_size": np.int32(8), "lr": np.float32(0.5)}
    record = peftlab.train(model, tokenizer, tiny_task, method, seed=np.int64(1), **settings)
    assert (record.seed, record.training["epochs"], record.training["lr"]) == (1, 1, 0.5)
    assert record.method.settings["rank"] == 2
    plan = peftlab.plan(model=tiny_model, tasks=tiny_task, methods="head", seeds=np.arange(2))
    assert plan.cells == 2


def test_one_name_or_value_alone_is_a_list_of_one(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    records = peftlab.compare(
        model=tiny_model, tasks=tiny_task, methods=peftlab.LoRA(), seeds=3, out=tmp_path, epochs=1
    )
    assert [(r.method.name, r.seed, r.status) for r in records] == [("lora", 3, "done")]


def test_a_users_file_is_compared_on_in_python(
    tiny_model: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    request = {"model": tiny_model, "methods": "head", "epochs": 1, "out": tmp_path / "out"}
    columns = {"text": "sentence", "label": "answer"}
    (record,) = peftlab.compare(data=tiny_csv, **columns, **request)
    assert record.status == "done"
    assert (record.task.name, record.task.source) == ("tiny", "file tiny.csv")
    table = {"path": str(tiny_csv), "text": ("sentence",), "label": "answer"}
    assert peftlab.compare(data=table, **request) == [record]  # the same cell: done already
    both = {**request, "data": tiny_csv, **columns, "tasks": ["cola"]}
    for wrong, message in (
        ({"data": tiny_csv, **request}, r"needs --text .*\(in Python: data=FILE, text=, label=\)"),
        ({"text": "sentence", **request}, "describes your own data"),
        ({"data": {"text": "a"}, **request}, "data must have a path"),
        ({"data": {**table, "lable": "a"}, **request}, "did you mean 'label'"),
        ({"data": {**table, "kind": "numbers"}, **request}, "got 'numbers'"),
        ({"data": {**table, "label": "anser"}, **request}, "anser"),
        (both, "not both"),
    ):
        with pytest.raises(peftlab.RequestError, match=message):
            peftlab.compare(**wrong)


def test_a_label_s_name_is_of_its_type() -> None:
    for label_type, labels in (("int", ("0", "x")), ("bool", ("False", "True"))):
        with pytest.raises(
            peftlab.RequestError, match=f"label_type is {label_type}, and labels has"
        ):
            Task("t", "classes", ("accuracy",), TRAIN, DEV, labels, label_type=label_type)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0], "2 texts have 1 labels"),
        ([0, -100], "train has the label -100; labels of classes are indices from 0 to 1"),
        ([0, 2], "train has the label 2"),
        ([0.0, float("nan")], "a label is NaN or infinite"),
    ],
)
def test_a_task_of_one_s_own_is_checked(labels: list[Any], problem: str) -> None:
    with pytest.raises(peftlab.RequestError, match=problem) as refused:
        Task("t", "classes", ("accuracy",), Examples([("a",), ("b",)], labels), DEV, ("x", "y"))
    assert len(str(refused.value)) < 120  # the message quotes no texts
