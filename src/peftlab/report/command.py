"""The command line that runs one cell again, with no setting left to a default.

A model of the hub is its newest revision, as `--model` takes no commit.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftlab.naming import columns
from peftlab.records.record import Record
from peftlab.records.rows import is_judged_on_train
from peftlab.settings import Training

OUT = "again"  # a folder of its own: in the cell's folder it is done already, and would not run
# sources of tasks that a name asks for; one handed over in Python may have any words for its own
BY_NAME = re.compile(
    r"(synthetic|folder [^/]+(/[\w-]+)?|hub nyu-mll/glue@\w+)(, [\w. ]+ of train)?"
)


def command(record: Record, suite: Mapping[str, Any] | None = None) -> str | None:
    """`peftlab compare ...` for this cell alone; None if no command line can ask for it.

    There is none where the model or the data were handed over in Python, where nothing says where
    the data lie, as for folders laid side by side, or where `--text` can't spell a column's name.
    A cell whose settings were found by trials is asked for by the settings found: the same numbers
    under another name.

    Args:
        record: of the cell.
        suite: the entry in suite.json of the suite that asked for the cell, if it is known; it
            says where model and data lie.
    """
    suite = suite or {}
    has_task_name = BY_NAME.fullmatch(record.task.source)
    data = suite.get("data") or {}
    if record.model.sha256 is None or record.side or not (has_task_name or data):
        return None
    if data and columns(_column_list(data["text"])) != list(data["text"]):
        return None
    words = ["peftlab", "compare", "--model", str(suite.get("model") or record.model.name)]
    words += _data(record, suite)
    words += ["--methods", method(record), "--seeds", str(record.seed), *_training(record)]
    if record.method.source_sha256:
        words += ["--plugin", "FILE.py"]  # no record says which file it was
    return " ".join(map(quoted, [*words, "--out", OUT]))


def quoted(word: str) -> str:
    """A word for a shell, in double quotes where these suffice: Windows' shell has no others.

    >>> print(quoted("a"), quoted("lora[rank=8]"), quoted("cost in $"))
    a "lora[rank=8]" 'cost in $'
    """
    as_posix = shlex.quote(word)
    is_plain = not re.search(r'["“”„$`!%\n]|\\\\|\\$', word)
    return f'"{word}"' if as_posix != word and is_plain else as_posix


def method(record: Record) -> str:
    """NAME[field=value,...] as `--methods` reads it, with every setting and both rates."""
    rates = {name: record.training.get(name) for name in ("lr", "head_lr")}
    fields = {**record.method.settings, **rates}
    inside = ",".join(f"{name}={_value(v)}" for name, v in fields.items() if v is not None)
    return f"{record.method.name}[{inside}]"


def _value(value: object) -> str:
    r"""The value in TOML; a text bare if it reads as itself, else quoted, with , [ ] escaped.

    >>> _value("query,value"), _value(True), _value(16.0), _value("16")
    ('query,value', 'true', '16.0', '"16"')
    >>> _value("a,b=c")
    '"a\\u002cb=c"'
    """
    if not isinstance(value, str):
        return json.dumps(value)
    bare = re.fullmatch(r"[A-Za-z_*.|][\w*.|-]*(,[A-Za-z_*.|][\w*.|-]*)*", value)
    if bare and value not in ("true", "false", "inf", "nan"):
        return value
    return re.sub(r"[,\[\]]", lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value))


def _data(record: Record, suite: Mapping[str, Any]) -> list[str]:
    """The options that name the task and its files."""
    data = suite.get("data")
    if data:
        words = ["--data", _at_commit(data["path"], record)]
        words += ["--text", _column_list(data["text"]), "--label", data["label"]]
        words += ["--dev", data["dev"]] if data.get("dev") else []
        words += ["--kind", record.task.kind]
    else:
        words = ["--tasks", record.task.name]
        # no record says which folder it was
        folder = suite.get("data_dir") or ("DIR" if record.task.source.startswith("folder") else "")
        words += ["--data-dir", folder] if folder else []
    words += ["--metric", record.task.main_metric] if suite.get("metric") else []
    return words + (["--judge-on", "train"] if is_judged_on_train(record) else [])


def _column_list(names: Iterable[str]) -> str:
    """The names of columns as `--text` reads them (`naming.columns`)."""
    return ",".join(f'"{name}"' if "," in name else name for name in names)


def _at_commit(path: str, record: Record) -> str:
    """The path; for a data set of the hub with the commit of the run: its data may have changed."""
    source = re.match(r"hub (\S+@[0-9a-f]+)", record.task.source)
    return f"hub:{source[1]}" if source and path.startswith("hub:") else path


def _training(record: Record) -> list[str]:
    """An option for each setting that differs from the default that all cells share."""
    settings = {**record.training, "precision": _precision(record)}
    words: list[str] = []
    for name, field in Training.model_fields.items():
        value = settings.get(name)
        if name in ("lr", "head_lr") or value is None or value == field.default:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return words


def _precision(record: Record) -> str:
    """The precision asked for; a method that trains the base holds it in fp32 all the same."""
    quantised = record.precision in ("int8", "int7", "nf4")
    return record.precision if quantised else record.training.get("compute", record.precision)


def commands(records: Iterable[Record], suites: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By cell, the command of every record that has one; the latest of `suites` comes last."""
    suite_of = {cell["cell"]: suite for suite in suites for cell in suite.get("cells", ())}
    lines = {record.cell: command(record, suite_of.get(record.cell)) for record in records}
    return {cell: line for cell, line in lines.items() if line is not None}
