"""Any data set of the hub as a task: `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIG@REVISION`.

Its Parquet files are read as a user's own are. They lie in a folder named after the config, or
without one in data/; else the hub's own conversion serves. `validation` judges, if it is there.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftlab.errors import RequestError, unknown
from peftlab.tasks.base import Task
from peftlab.tasks.files import file, rows
from peftlab.tasks.hub import files

PREFIX = "hub:"
DEFAULT = "default"  # what the hub calls the config of a data set that has no other

_GIVEN = re.compile(r"hub:([^/@]+/[^/@]+)(?:/([^/@]+))?(?:@([\w./-]+))?")
_FILE = re.compile(
    r"(?:(?P<config>[^./][^/]*)/)?(?P<split>train|validation)"
    r"(?:-(?P<number>\d+)-of-(?P<total>\d+)(?:-\w+)?|/(?P<converted>\d+))?\.parquet"
)

Splits = dict[str, list[str]]  # split -> its files in order


@dataclass(frozen=True)
class Name:
    """What was given: the data set, and a config and a revision if they were named."""

    repo: str
    config: str | None
    revision: str | None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.repo, self.config)))


def is_on_hub(path: Path) -> bool:
    """Whether what was given in place of a file names a data set of the hub."""
    return path.as_posix().startswith(PREFIX)


def load(
    path: Path,
    text: Sequence[str],
    label: str,
    kind: Literal["auto", "classes", "regression"] = "auto",
) -> Task:
    """Make a task of the data set that `path` names: see `files.load` for the columns.

    Without a split `validation` a fifth of train is kept apart. Without a revision it is the
    newest; the task's source says which that was.

    Raises:
        RequestError: no such data set, config, column or Parquet files; a row that is not as it
            must be; or neither the cache nor the hub has it.
    """
    name = parsed(path.as_posix())
    commit, revision, splits = _found(name)
    wanted = [entry for split in ("train", "validation") for entry in splits.get(split, [])]
    paths = dict(zip(wanted, files.fetch(name.repo, commit, wanted), strict=True))
    if commit != revision and files.out_of_reach(name.repo) is None:
        files.remember(name.repo, revision, wanted[0])
    columns = file.columns_of(text, label)
    tables = {
        split: rows.read_split(f"{name}, {split}", [paths[entry] for entry in entries], columns)
        for split, entries in splits.items()
    }
    task = file.task_of(
        tables["train"],
        tables.get("validation"),
        text,
        label,
        kind,
        stem=str(name).partition("/")[2],
        source=f"hub {name}@{commit}",
        licence=files.licence(name.repo, files.card_of(revision)),
    )
    if "validation" in tables:
        return task
    note = f"{name} has no split validation: a fifth of train is kept apart"
    return dataclasses.replace(task, notes=(*task.notes, note))


def parsed(given: str) -> Name:
    """The parts of `hub:OWNER/NAME[/CONFIG][@REVISION]`.

    Raises:
        RequestError: it is not of that form, or can't be a name on the hub.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    form = "a data set of the hub is hub:OWNER/NAME, or hub:OWNER/NAME/CONFIG@REVISION"
    match = _GIVEN.fullmatch(given)
    if match is None or ".." in given:
        raise RequestError(f"{form}, got {given!r}.")
    try:
        validate_repo_id(match[1])
    except HFValidationError as error:
        raise RequestError(f"{form}, got {given!r}: {error}") from None
    return Name(*match.groups())


def _found(name: Name) -> tuple[str, str, Splits]:
    """The commit that has the files, the revision by which it was found, and its files."""
    trouble = files.out_of_reach(name.repo)
    look = files.cached_listing if trouble else files.listing
    tried = [name.revision] if name.revision else ["main", files.CONVERTED]
    for revision in tried:
        commit, there = look(name.repo, revision)
        if configs := _configs(there):
            return commit, revision, configs[_config(name, configs)]
    if trouble:
        otherwise = "Load it once on a machine with a network and copy its cache (HF_HOME) here."
        raise files.no_copy(name.repo, trouble, otherwise)
    raise RequestError(
        f"{name.repo} has no Parquet files of a split train at {' or '.join(tried)}, such as "
        "data/train-00000-of-00001.parquet. Download what it has and give a file with --data FILE."
    )


def _configs(names: Iterable[str]) -> dict[str, Splits]:
    """Config -> its splits, of those that are whole and have one to train on.

    >>> _configs(["data/train.parquet", "b/train-00000-of-00002.parquet", "README.md"])
    {'default': {'train': ['data/train.parquet']}}
    """
    found: dict[str, dict[str, list[re.Match[str]]]] = defaultdict(lambda: defaultdict(list))
    for match in filter(None, map(_FILE.fullmatch, sorted(names))):
        config = match["config"] if match["config"] not in (None, "data") else DEFAULT
        found[config][match["split"]].append(match)
    return {
        config: {split: [match[0] for match in matches] for split, matches in splits.items()}
        for config, splits in found.items()
        if "train" in splits and all(map(_is_whole, splits.values()))
    }


def _is_whole(matches: Sequence[re.Match[str]]) -> bool:
    numbers = [int(match["number"] or match["converted"] or 0) for match in matches]
    totals = {int(match["total"] or len(matches)) for match in matches}
    return numbers == list(range(len(matches))) and totals == {len(matches)}


def _config(name: Name, configs: dict[str, Splits]) -> str:
    if name.config is None and len(configs) > 1:
        raise RequestError(
            f"{name.repo} has several configs; give one as hub:{name.repo}/CONFIG: "
            f"{', '.join(configs)}."
        )
    config = name.config or next(iter(configs))
    if config not in configs:
        raise unknown(f"config of {name.repo}", config, configs)
    return config
