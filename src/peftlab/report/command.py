"""The command line that runs one cell again, with no setting left to a default.

A model of the hub is its newest, as `--model` takes no commit.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftlab.records.record import Record
from peftlab.records.rows import judged_on_train
from peftlab.settings import Training

OUT = "again"  # a folder of its own: where the cell is done already it would not run
BY_NAME = ("synthetic", "folder", "hub nyu-mll/glue@")  # sources of tasks that a name asks for


def command(record: Record, suite: Mapping[str, Any] | None = None) -> str | None:
    """`peftlab compare ...` for this cell alone; None if no command line can ask for it.

    That is where the model or the data were handed over in Python, or nothing says where the data
    lie, as of folders laid side by side, or the name of a text column would be taken apart
    (`--text` parts at commas). A cell whose settings were found by trials is asked for by what was
    found: the same numbers under another name.

    Args:
        record: of the cell.
        suite: what suite.json says of the suite that asked for it, if it is known: where its model
            and data lie.
    """
    suite = suite or {}
    by_name = record.task.source.startswith(BY_NAME)
    own = suite.get("data") or {}
    if record.model.sha256 is None or record.side or not (by_name or own):
        return None
    if any(set(name) & set(",[]") or name != name.strip() for name in own.get("text", ())):
        return None
    words = ["peftlab", "compare", "--model", str(suite.get("model") or record.model.name)]
    words += _data(record, suite)
    words += ["--methods", method(record), "--seeds", str(record.seed), *_training(record)]
    if record.method.source_sha256:
        words += ["--plugin", "FILE.py"]  # which file it was no record says
    return " ".join(map(quoted, [*words, "--out", OUT]))


def quoted(word: str) -> str:
    """A word for a shell, in double quotes where they do: Windows' own has no others.

    >>> print(quoted("a"), quoted("lora[rank=8]"), quoted("cost in $"))
    a "lora[rank=8]" 'cost in $'
    """
    as_posix = shlex.quote(word)
    is_plain = not re.search(r'["“”„$`!%\n]|\\\\|\\$', word)
    return f'"{word}"' if as_posix != word and is_plain else as_posix


def method(record: Record) -> str:
    """NAME[field=value,...] as `--methods` reads it, with every setting and both rates."""
    rates = {name: record.training.get(name) for name in ("lr", "head_lr")}
    given = {**record.method.settings, **rates}
    inside = ",".join(f"{name}={_value(v)}" for name, v in given.items() if v is not None)
    return f"{record.method.name}[{inside}]"


def _value(value: object) -> str:
    r"""As TOML has it; a text bare if it reads as itself, else with what would part it escaped.

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
    return re.sub(r"[,\[\]]", lambda one: f"\\u{ord(one[0]):04x}", json.dumps(value))


def _data(record: Record, suite: Mapping[str, Any]) -> list[str]:
    """The options that name the task and its files."""
    own = suite.get("data")
    if own:
        words = [
            "--data",
            _at_commit(own["path"], record),
            "--text",
            ",".join(own["text"]),
            "--label",
            own["label"],
        ]
        words += ["--dev", own["dev"]] if own.get("dev") else []
        words += ["--kind", record.task.kind]
    else:
        words = ["--tasks", record.task.name]
        folder = suite.get("data_dir") or ("DIR" if record.task.source.startswith("folder") else "")
        words += ["--data-dir", folder] if folder else []  # which one it was no record says
    words += ["--metric", record.task.main_metric] if suite.get("metric") else []
    return words + (["--judge-on", "train"] if judged_on_train(record) else [])


def _at_commit(path: str, record: Record) -> str:
    """A data set of the hub as it was: what its name leads to may have changed since."""
    found = re.match(r"hub (\S+@[0-9a-f]+)", record.task.source)
    return f"hub:{found[1]}" if found and path.startswith("hub:") else path


def _training(record: Record) -> list[str]:
    """An option for each setting that is not the same for every cell by default."""
    given = {**record.training, "precision": _precision(record)}
    words: list[str] = []
    for name, field in Training.model_fields.items():
        value = given.get(name)
        if name in ("lr", "head_lr") or value is None or value == field.default:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return words


def _precision(record: Record) -> str:
    """What was asked for; a method that trains the base holds it in fp32 whatever that is."""
    quantised = record.precision in ("int8", "int7", "nf4")
    return record.precision if quantised else record.training.get("compute", record.precision)


def commands(records: Iterable[Record], suites: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By cell, of every record that a command line can ask for; `suites` are the latest last."""
    asked_in = {cell["cell"]: suite for suite in suites for cell in suite.get("cells", ())}
    found = {record.cell: command(record, asked_in.get(record.cell)) for record in records}
    return {cell: line for cell, line in found.items() if line is not None}
