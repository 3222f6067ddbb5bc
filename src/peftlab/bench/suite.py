"""A suite: a request for a grid, checked strictly, from a TOML file, options or Python.

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
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from peftlab.errors import JSON_ERRORS, RequestError, expanded, explain, unknown
from peftlab.labels import AnyKind
from peftlab.methods import METHODS, Method, parse_method, parse_value
from peftlab.naming import named, slug
from peftlab.settings import STRICT, Rate, Training
from peftlab.tasks import Task

DEFAULT_TASKS, DEFAULT_SEEDS = ["acceptability"], [0, 1]
DEMO_NAME = "demo"
DEMO_METHODS = [  # listed, so that a new method does not make the demo longer
    *("full", "head", "houlsby", "lora", "bitfit", "dylora", "qlora", "lora-fa", "delta-lora"),
    *("vera", "lora-drop", "dora", "lora-plus"),
]
DEMO_EPOCHS = 2  # about 4 minutes on two cores, 4.4 with AVX2 alone (LOG.md)
ROW_FIELDS = ("name", "label", "lr", "head_lr")  # all else in a row is a setting of its method
PATHS = ("data_dir", "path", "dev")  # keys of a request and of its data table; strings in a file


class _Request(BaseModel):
    model_config = STRICT | ConfigDict(arbitrary_types_allowed=True)


class Variant(_Request):
    """One row of the table: a method, its settings, and learning rates of its own, if any."""

    name: str
    label: str
    settings: dict[str, Any] = {}
    lr: Rate | None = None
    head_lr: Rate | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """Accept a name, a `name[field=value]`, a flat table as in a suite file, or a Method."""
        if not isinstance(value, Method | str | dict):
            return value
        table = _as_table(value)
        fields = {key: table[key] for key in ROW_FIELDS if key in table}
        fields.setdefault("label", _default_label(table))
        return fields | {"settings": {key: table[key] for key in table if key not in fields}}


class DataFile(_Request):
    """A user's own data."""

    path: Path  # a file, or hub:OWNER/NAME, which a path holds unchanged
    text: list[str]
    label: str
    dev: Path | None = None
    kind: AnyKind = "auto"

    @field_validator("path", "dev")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else expanded(path)


class Tune(_Request):
    """How settings are looked for: alike for every row, on a part of train; dev is not used."""

    trials: int = Field(ge=1, le=1000)  # for each row on each task
    validation: float = Field(0.1, gt=0, le=0.5)  # the share of train that trials are judged on
    space: list[str] = Field(["lr", "head_lr"], min_length=1)

    @model_validator(mode="after")
    def _check_space(self) -> Tune:
        spaces = [method.search_space() for method in METHODS.values()]
        known = dict.fromkeys(name for space in spaces for name in space)
        for name in self.space:
            if name not in known:
                raise unknown("setting in the tuning space", name, known)
        return self


class Suite(_Request):
    """A request for a grid; `peftlab.bench.grid.resolve` turns it into cells."""

    name: str
    model: str = "minilm"
    tasks: list[str | Task] = Field(
        default_factory=lambda: list[str | Task](DEFAULT_TASKS), min_length=1
    )
    methods: list[Variant] = Field(
        default_factory=lambda: [Variant.model_validate(name) for name in METHODS],
        min_length=1,
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=DEFAULT_SEEDS, min_length=1)
    training: Training = Training()
    data_dir: Path | None = None
    data: DataFile | None = None
    metric: str | None = None  # the main metric of all tasks, instead of each task's own
    tune: Tune | None = None
    judge_on: Literal["dev", "train"] = "dev"  # train: a fifth of train, and dev is not looked at


TABLE_FIELDS = {
    "training": Training.model_fields,
    "data": DataFile.model_fields,
    "tune": Tune.model_fields,
}


def make_suite(**request: Any) -> Suite:
    """A checked suite; one without a name is named after its model and tasks.

    Raises:
        RequestError: naming the field, what was given and what is allowed.
    """
    request = {key: value for key, value in request.items() if value is not None}
    _check_types(request)
    request |= _demo_defaults(request)
    if "rates" in request:
        request["methods"] = _at_rates(request.get("methods", list(METHODS)), request.pop("rates"))
    if "data" in request and "tasks" in request:
        raise RequestError("give either tasks by name or your own data, not both")
    if "name" not in request:
        request["name"] = _default_name(request)
    try:
        return Suite.model_validate(request)
    except ValidationError as error:
        raise explain(error, "the suite", Suite.model_fields, TABLE_FIELDS) from None


def _at_rates(methods: list[Any], rates: list[Any]) -> list[dict[str, Any]]:
    """A row of each method at each learning rate; one with a rate of its own stays one row."""
    for rate in rates:
        if rates.count(rate) > 1:
            raise RequestError(
                f"the rates (--lr) name {rate} more than once; leave one of them out"
            )
    _check_rates_apply(methods, rates)
    rows: list[dict[str, Any]] = []
    for table in map(_as_table, methods):
        has_rate = table.get("lr") is not None
        rows += [table] if has_rate else [_with_rate(table, rate) for rate in rates]
    return rows


def _check_rates_apply(methods: Iterable[Any], rates: list[Any]) -> None:
    """Raise `RequestError` if every row has a rate of its own, so that `rates` change none."""
    own_rates = [_as_table(method).get("lr") for method in methods]
    if own_rates and rates and all(rate is not None for rate in own_rates):
        raise RequestError(
            f"--lr {','.join(map(str, rates))} changes nothing: every method has a learning rate "
            f"of its own ({', '.join(map(str, own_rates))}); leave out one or the other"
        )


def _as_table(method: Any) -> dict[str, Any]:
    """A row as a flat table, as in a suite file; a table may have `settings`, as in a record.

    Raises:
        RequestError: if those settings repeat a key of the table, or name one of `ROW_FIELDS`.
    """
    if isinstance(method, Method):
        return {"name": method.name} | _changed_settings(method)
    table = parse_method(method) if isinstance(method, str) else dict(method)
    settings = table.get("settings")
    if not isinstance(settings, dict):
        return table
    del table["settings"]
    if repeated := sorted(settings.keys() & {*ROW_FIELDS, *table}):
        raise RequestError(
            f"the settings of {table.get('name')} give {', '.join(repeated)}, which stands beside "
            "them; give it there"
        )
    return table | settings


def _with_rate(table: dict[str, Any], rate: Any) -> dict[str, Any]:
    label = {"label": f"{table['label']} (lr {rate})"} if "label" in table else {}
    return table | {"lr": rate} | label


def _demo_defaults(request: dict[str, Any]) -> dict[str, Any]:
    """The demo's methods and epochs, if the request names no model, tasks, methods or data."""
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
    options = request.get("training", Training()).given
    if options.get("lr") is not None:
        merged.pop("rates", None)
    merged |= {key: value for key, value in request.items() if value is not None}
    merged["training"] = {**training, **options}
    if "tune" in merged:
        merged["tune"] = {**tune, **merged["tune"]}
        if "trials" not in merged["tune"]:
            raise RequestError(
                "--validation and --tune-space describe how to tune; say with --tune N how many "
                "trials every method gets"
            )
    merged |= _demo_defaults(merged)
    _check_types(merged)
    apply_sets(merged, sets, options)
    if options.get("lr") is not None:
        _check_rates_apply(merged.get("methods", METHODS), [options["lr"]])
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
    """Raise `RequestError` unless values have the types that code before pydantic relies on."""
    for key, (kind, words) in TYPES.items():
        if request.get(key) is not None and not isinstance(request[key], kind):
            raise RequestError(f"{key} must be {words}, got {request[key]!r}")
    for task in request.get("tasks") or []:
        if not isinstance(task, str | Task):
            raise RequestError(f"a task is a name (or a Task in Python), got {task!r}")
    for method in request.get("methods") or []:
        is_named = isinstance(method, dict) and isinstance(method.get("name"), str)
        if not (is_named or isinstance(method, str | Method)):
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
    except JSON_ERRORS as error:  # also a file that is not UTF-8, and TOMLDecodeError
        raise RequestError(f"suite file {path} is not TOML: {error}") from error
    request.setdefault("name", path.stem)
    return with_paths(request, lambda value: Path(value) if isinstance(value, str) else value)


def with_paths(request: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    """A request, or a data table, with `convert` applied to each path, those of `data` included."""
    converted = {
        key: convert(value) if key in PATHS and value is not None else value
        for key, value in request.items()
    }
    if isinstance(converted.get("data"), dict):
        converted["data"] = with_paths(converted["data"], convert)
    return converted


def apply_sets(
    request: dict[str, Any], assignments: Iterable[str], options: Collection[str] = ()
) -> None:
    """Apply `METHOD.FIELD=VALUE` and `training.FIELD=VALUE` to a request, in place.

    Raises:
        RequestError: if one is malformed, names a method that the request does not have, or sets
            what one of the `options` of training sets.
    """
    for assignment in assignments:
        match = re.fullmatch(r"\s*([\w-]+)\.(\w+)\s*=\s*(.+)", assignment)
        if match is None:
            raise RequestError(
                f"--set takes METHOD.FIELD=VALUE or training.FIELD=VALUE, got {assignment!r}"
            )
        owner, field, value = match[1], match[2], parse_value(match[3].strip())
        if owner == "training":
            if field == "lr" and request.get("rates"):
                raise RequestError(
                    f"--set {assignment} and several rates ({request['rates']}) exclude each "
                    "other; leave one of them out, or give --lr"
                )
            if field in options:
                raise RequestError(
                    f"--set {assignment} and the option for {field} exclude each other; leave one "
                    "of them out"
                )
            request["training"] = {**request.get("training", {}), field: value}
            continue
        _set_on_method(request, owner, field, value)


def _default_label(table: dict[str, Any]) -> str | None:
    """The label of a row that has none: the method's name, and the settings that it gives."""
    if "name" not in table:
        return None
    settings = [f"{key}={value}" for key, value in table.items() if key not in ("name", "label")]
    return f"{table['name']}[{','.join(settings)}]" if settings else str(table["name"])


def _changed_settings(method: Method) -> dict[str, Any]:
    """The settings that differ from the method's defaults."""
    try:
        defaults = type(method)().settings
    except RequestError:  # a user's own method may have a setting without a default
        return method.settings
    return {key: value for key, value in method.settings.items() if value != defaults[key]}


def _set_on_method(request: dict[str, Any], owner: str, field: str, value: Any) -> None:
    methods = [_as_table(method) for method in request.get("methods") or METHODS]
    owners = list(dict.fromkeys(method["name"] for method in methods))
    if owner not in owners:
        raise unknown("method in --set", owner, ["training", *owners])
    request["methods"] = [
        {**method, field: value} if method["name"] == owner else method for method in methods
    ]


def _default_name(request: dict[str, Any]) -> str:
    tasks = request.get("tasks", DEFAULT_TASKS)
    model = request.get("model", "minilm")
    if tasks == DEFAULT_TASKS and model == "minilm" and not request.get("data"):
        return DEMO_NAME
    names = [task if isinstance(task, str) else task.name for task in tasks]
    if request.get("data"):
        names = [named(Path(str(request["data"].get("path", "data"))).stem)]
    return slug("-".join([Path(model).name, *names]))[:80]
