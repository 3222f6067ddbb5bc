"""A suite: the grid that was asked for, checked strictly, from a TOML file, options or Python.

name = "ranks"
model = "minilm"
tasks = ["mrpc", "stsb"]
seeds = [0, 1, 2]
training = { epochs = 3 }
methods = ["full", { name = "lora" }, { name = "lora", label = "LoRA r=16", rank = 16 }]

`rates = [1e-4, 4e-4]` makes a row of every method at each; `tune = { trials = 6 }` finds rates.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from peftlab.errors import JSON_ERRORS, RequestError, expanded, explain, unknown
from peftlab.methods import METHODS, Method, parse_method, parse_value
from peftlab.naming import named, slug
from peftlab.settings import STRICT, Rate, Training
from peftlab.tasks import Task

DEMO_NAME = "demo"
DEMO_TASKS = ["acceptability"]
DEMO_METHODS = [  # by name: a method that is added does not make the demo longer
    *("full", "head", "houlsby", "lora", "bitfit", "dylora", "qlora", "lora-fa", "delta-lora"),
    *("vera", "lora-drop", "dora", "lora-plus"),
]
DEMO_SEEDS = [0, 1]
DEMO_EPOCHS = 2  # about 4 minutes on two cores, 4.4 with AVX2 alone (LOG.md)
OWN = ("name", "label", "lr", "head_lr")  # of a row, beside its method's settings
PATHS = ("data_dir", "path", "dev")  # of a request and of its data table; strings in a file


class _Request(BaseModel):
    model_config = STRICT | ConfigDict(arbitrary_types_allowed=True)


class Variant(_Request):
    """One row of the table: a method, its settings, and learning rates of its own if any."""

    name: str
    label: str
    settings: dict[str, Any] = {}
    lr: Rate | None = None
    head_lr: Rate | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """Accept a name, a `name[field=value]`, a flat table as in a suite file, or a Method."""
        if not isinstance(given, Method | str | dict):
            return given
        given = _table(given)
        own = {key: given[key] for key in OWN if key in given}
        own.setdefault("label", _label(given))
        return own | {"settings": {key: given[key] for key in given if key not in own}}


class DataFile(_Request):
    """A user's own data."""

    path: Path  # of a file; or hub:OWNER/NAME, which a path carries as it was given
    text: list[str]
    label: str
    dev: Path | None = None
    kind: Literal["auto", "classes", "regression"] = "auto"

    @field_validator("path", "dev")
    @classmethod
    def _expanded(cls, path: Path | None) -> Path | None:
        return None if path is None else expanded(path)


class Tune(_Request):
    """How settings are looked for: alike for every row, on a part of train that dev is not in."""

    trials: int = Field(ge=1, le=1000)  # of a row on a task
    validation: float = Field(0.1, gt=0, le=0.5)  # the share of train that trials are judged on
    space: list[str] = Field(["lr", "head_lr"], min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Tune:
        known = dict.fromkeys(name for one in METHODS.values() for name in one.search_space())
        for name in self.space:
            if name not in known:
                raise unknown("setting in the tuning space", name, known)
        return self


class Suite(_Request):
    """What was asked for; `peftlab.bench.grid.resolve` turns it into cells."""

    name: str
    model: str = "minilm"
    tasks: list[str | Task] = Field(
        default_factory=lambda: list[str | Task](DEMO_TASKS), min_length=1
    )
    methods: list[Variant] = Field(
        default_factory=lambda: [Variant.model_validate(name) for name in METHODS],
        min_length=1,
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=DEMO_SEEDS, min_length=1)
    training: Training = Training()
    data_dir: Path | None = None
    data: DataFile | None = None
    metric: str | None = None  # the main one, of all tasks, instead of each task's own
    tune: Tune | None = None
    judge_on: Literal["dev", "train"] = "dev"  # train: a fifth of it, and dev is not looked at


INSIDE = {  # a suite's tables
    "training": Training.model_fields,
    "data": DataFile.model_fields,
    "tune": Tune.model_fields,
}


def make_suite(**request: Any) -> Suite:
    """A checked suite; without a name it takes one from its model and tasks.

    Raises:
        RequestError: naming the field, what was given and what is allowed.
    """
    request = {key: value for key, value in request.items() if value is not None}
    _check_types(request)
    request |= _of_the_demo(request)
    if "rates" in request:
        request["methods"] = _at_rates(request.get("methods", list(METHODS)), request.pop("rates"))
    if "data" in request and "tasks" in request:
        raise RequestError("give either tasks by name or your own data, not both")
    if "name" not in request:
        request["name"] = _name(request)
    try:
        return Suite.model_validate(request)
    except ValidationError as error:
        raise explain(error, "the suite", Suite.model_fields, INSIDE) from None


def _at_rates(methods: list[Any], rates: list[Any]) -> list[dict[str, Any]]:
    """A row of every method at each learning rate; a method that has its own keeps that alone."""
    for rate in rates:
        if rates.count(rate) > 1:
            raise RequestError(
                f"the rates (--lr) name {rate} more than once; leave one of them out"
            )
    _check_some_take(methods, rates)
    rows: list[dict[str, Any]] = []
    for method in methods:
        given = _table(method)
        own = given.get("lr") is not None
        rows += [given] if own else [_relabelled(given, rate) for rate in rates]
    return rows


def _check_some_take(methods: Iterable[Any], rates: list[Any]) -> None:
    """Raise `RequestError` if every row has a rate of its own, which wins over the rates asked."""
    own = [_table(method).get("lr") for method in methods]
    if own and rates and all(rate is not None for rate in own):
        raise RequestError(
            f"--lr {','.join(map(str, rates))} changes nothing: every method has a learning rate "
            f"of its own ({', '.join(map(str, own))}); leave out one or the other"
        )


def _table(method: Any) -> dict[str, Any]:
    """A row as the flat table that a suite file has; its settings may be apart, as in a record.

    Raises:
        RequestError: if those name what the row has itself.
    """
    if isinstance(method, Method):
        return {"name": method.name} | _changed(method)
    table = parse_method(method) if isinstance(method, str) else dict(method)
    apart = table.get("settings")
    if not isinstance(apart, dict):
        return table
    del table["settings"]
    if twice := sorted(apart.keys() & {*OWN, *table}):
        raise RequestError(
            f"the settings of {table.get('name')} give {', '.join(twice)}, which stands beside "
            "them; give it there"
        )
    return table | apart


def _relabelled(given: dict[str, Any], rate: Any) -> dict[str, Any]:
    label = {"label": f"{given['label']} (lr {rate})"} if "label" in given else {}
    return given | {"lr": rate} | label


def _of_the_demo(request: dict[str, Any]) -> dict[str, Any]:
    """The demo's methods and epochs, where nothing is asked for but how to train."""
    if any(request.get(key) is not None for key in ("model", "tasks", "methods", "data")):
        return {}
    training = {"epochs": DEMO_EPOCHS} | request.get("training", {})
    return {"training": training, "methods": DEMO_METHODS}


def merged_request(file: Path | None, request: dict[str, Any], sets: Iterable[str] = ()) -> Suite:
    """The suite of a file, of options that win over it, and of `--set` assignments on top."""
    merged = read_suite(file) if file is not None else {}
    _check_types(merged)
    if request.get("tasks") is not None:  # options win over the file
        merged.pop("data", None)
    if request.get("data") is not None:
        merged.pop("tasks", None)
    training, tune = merged.get("training", {}), merged.get("tune", {})
    given = request.get("training", Training()).given
    if given.get("lr") is not None:
        merged.pop("rates", None)
    merged |= {key: value for key, value in request.items() if value is not None}
    merged["training"] = {**training, **given}
    if "tune" in merged:
        merged["tune"] = {**tune, **merged["tune"]}
        if "trials" not in merged["tune"]:
            raise RequestError(
                "--validation and --tune-space describe how to tune; say with --tune N how many "
                "trials every method gets"
            )
    merged |= _of_the_demo(merged)
    _check_types(merged)
    apply_sets(merged, sets)
    if given.get("lr") is not None:
        _check_some_take(merged.get("methods", METHODS), [given["lr"]])
    return make_suite(**merged)


TYPES: dict[str, tuple[type, str]] = {
    "name": (str, "text"),
    "model": (str, "text"),
    "tasks": (list, "a list of names"),
    "methods": (list, "a list of names and tables"),
    "seeds": (list, "a list of numbers"),
    "training": (dict, "a table"),
    "data": (dict, "a table"),
    "tune": (dict, "a table"),
    "rates": (list, "a list of numbers"),
}


def _check_types(request: dict[str, Any]) -> None:
    """What the code below takes for granted before pydantic sees the request."""
    for key, (kind, words) in TYPES.items():
        if request.get(key) is not None and not isinstance(request[key], kind):
            raise RequestError(f"{key} must be {words}, got {request[key]!r}")
    for task in request.get("tasks") or []:
        if not isinstance(task, str | Task):
            raise RequestError(f"a task is a name (or a Task in Python), got {task!r}")
    for method in request.get("methods") or []:
        named = isinstance(method, dict) and isinstance(method.get("name"), str)
        if not (named or isinstance(method, str | Method)):
            raise RequestError(f"a method is a name, or a table with a name, got {method!r}")


def read_suite(path: Path) -> dict[str, Any]:
    """The content of a suite file, for `make_suite`.

    Raises:
        RequestError: if there is no such file, or it is not TOML.
    """
    try:
        request = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"suite file {path} can't be read: {error.strerror}") from error
    except JSON_ERRORS as error:  # what is not UTF-8 and TOMLDecodeError among them
        raise RequestError(f"suite file {path} is not TOML: {error}") from error
    request.setdefault("name", path.stem)
    return with_paths(request, lambda given: Path(given) if isinstance(given, str) else given)


def with_paths(request: dict[str, Any], made: Callable[[Any], Any]) -> dict[str, Any]:
    """A request, or a data table, with what is `made` of each of its paths."""
    told = {
        key: made(value) if key in PATHS and value is not None else value
        for key, value in request.items()
    }
    if isinstance(told.get("data"), dict):
        told["data"] = with_paths(told["data"], made)
    return told


def apply_sets(request: dict[str, Any], assignments: Iterable[str]) -> None:
    """Apply `METHOD.FIELD=VALUE` and `training.FIELD=VALUE` to a request, in place.

    Raises:
        RequestError: if one is malformed, or names a method that the request does not have.
    """
    for assignment in assignments:
        found = re.fullmatch(r"\s*([\w-]+)\.(\w+)\s*=\s*(.+)", assignment)
        if found is None:
            raise RequestError(
                f"--set takes METHOD.FIELD=VALUE or training.FIELD=VALUE, got {assignment!r}"
            )
        owner, field, value = found[1], found[2], parse_value(found[3].strip())
        if owner == "training":
            if field == "lr" and request.get("rates"):
                raise RequestError(
                    f"--set {assignment} and several rates ({request['rates']}) exclude each "
                    "other; leave one of them out, or give --lr"
                )
            request["training"] = {**request.get("training", {}), field: value}
            continue
        _set_on_method(request, owner, field, value)


def _label(given: dict[str, Any]) -> str | None:
    """A row's label where none is given: the name, and the settings that were asked for."""
    if "name" not in given:
        return None
    asked = [f"{key}={value}" for key, value in given.items() if key not in ("name", "label")]
    return f"{given['name']}[{','.join(asked)}]" if asked else str(given["name"])


def _changed(method: Method) -> dict[str, Any]:
    """The settings that differ from the method's defaults."""
    try:
        defaults = type(method)().settings
    except RequestError:  # a user's own, which asks for one
        return method.settings
    return {key: value for key, value in method.settings.items() if value != defaults[key]}


def _set_on_method(request: dict[str, Any], owner: str, field: str, value: Any) -> None:
    methods = [_table(method) for method in request.get("methods") or METHODS]
    owners = list(dict.fromkeys(method["name"] for method in methods))
    if owner not in owners:
        raise unknown("method in --set", owner, ["training", *owners])
    request["methods"] = [
        {**method, field: value} if method["name"] == owner else method for method in methods
    ]


def _name(request: dict[str, Any]) -> str:
    tasks = request.get("tasks", DEMO_TASKS)
    model = request.get("model", "minilm")
    if tasks == DEMO_TASKS and model == "minilm" and not request.get("data"):
        return DEMO_NAME
    words = [task if isinstance(task, str) else task.name for task in tasks]
    if request.get("data"):
        words = [named(Path(str(request["data"].get("path", "data"))).stem)]
    return slug("-".join([Path(model).name, *words]))[:80]
