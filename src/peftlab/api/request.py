"""A request as options or Python's arguments give it: tasks, methods, a user's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.bench.suite import every_task
from peftlab.errors import RequestError, expect_path
from peftlab.methods import load_plugin, parse_methods

__all__ = ["data_of", "data_request", "every_task", "load_plugin", "parse_methods", "tune_of"]


def data_request(
    path: Any, text: Any, label: Any, dev: Any = None, kind: Any = None
) -> dict[str, Any] | None:
    """The request's `data` of what a command line or a caller gave; None if nothing was given.

    Raises:
        RequestError: if a column is not named, or there is no file.
    """
    given = {"text": text, "label": label, "dev": dev, "kind": kind}
    given = {name: value for name, value in given.items() if value is not None}
    if path is None:
        if given:
            raise RequestError(
                f"--{next(iter(given))} describes your own data; give the file with --data FILE "
                "(in Python: data=FILE)"
            )
        return None
    if not {"text", "label"} <= given.keys():
        raise RequestError(
            "--data FILE needs --text COLUMN[,COLUMN] and --label COLUMN "
            "(in Python: data=FILE, text=, label=)"
        )
    return {"path": path, **given}


def tune_of(
    trials: Any, validation: float | None = None, space: list[str] | None = None
) -> dict[str, Any] | None:
    """The request's `tune` of what a command line or a caller gave; None if nothing was given.

    Raises:
        RequestError: if it is said how to tune and not how many trials to run.
    """
    given = {"validation": validation, "space": space}
    given = {name: value for name, value in given.items() if value is not None}
    if trials is None and given:
        raise RequestError(
            "--validation and --tune-space describe how to tune; say with --tune N how many trials "
            "every method gets"
        )
    if trials is None or isinstance(trials, dict):
        return trials
    return {"trials": trials, **given}


def data_of(data: Any, given: dict[str, Any]) -> dict[str, Any] | None:
    """The request's `data` of compare's arguments; what is given beside a table wins over it."""
    given = {name: value for name, value in given.items() if value is not None}
    table = {**data, **given} if isinstance(data, dict) else {"path": data, **given}
    if isinstance(data, dict) and "path" not in table:
        raise RequestError(f"data must have a path, got {data!r}")
    for name in ("path", "dev"):
        if table.get(name) is not None:
            expect_path(f"data's {name}", table[name])
            table[name] = Path(table[name])
    if isinstance(table.get("text"), str):
        table["text"] = [column.strip() for column in table["text"].split(",")]
    known = {name: table.pop(name, None) for name in ("path", "text", "label", "dev", "kind")}
    asked = data_request(**known)
    return asked and {**asked, **table}
