"""Any data set of the hub as a task: `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIG@REVISION`.

Its Parquet files are read, at a commit, as a user's own are; never its code. They lie in a folder
named after the config, or without one in data/; else the hub's own conversion serves. `validation`
judges, if it is there.

What is asked for at a commit is the same everywhere and is taken from the cache if it is there.
Where the hub can't be reached (see `peftlab.network`) the cache serves, without the library's
retries.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftlab.errors import RequestError, unknown
from peftlab.network import problem, told
from peftlab.tasks.base import Task
from peftlab.tasks.files import file, rows

PREFIX = "hub:"
DEFAULT = "default"  # what the hub calls the config of a data set that has no other

_GIVEN = re.compile(r"hub:([^/@]+/[^/@]+)(?:/([^/@]+))?(?:@([\w./-]+))?")
_FILE = re.compile(
    r"(?:(?P<config>[^./][^/]*)/)?(?P<split>train|validation)"
    r"(?:-(?P<number>\d+)-of-(?P<total>\d+)(?:-\w+)?|/(?P<converted>\d+))?\.parquet"
)

Splits = dict[str, list[str]]  # split -> its files in order
CARD = "README.md"
CONVERTED = "refs/convert/parquet"  # where the hub keeps other formats converted to Parquet


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
    paths = dict(zip(wanted, fetch(name.repo, commit, wanted), strict=True))
    if commit != revision and out_of_reach(name.repo) is None:
        remember(name.repo, revision, wanted[0])
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
        licence=licence(name.repo, card_of(revision)),
    )
    if "validation" in tables:
        return task
    note = f"{name} has no split validation: a fifth of train is kept apart"
    if out_of_reach(name.repo) is not None:
        note = (
            f"the copy of {name} in the cache has no split validation, which the hub may have: a "
            "fifth of train is kept apart"
        )
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
    trouble = out_of_reach(name.repo)
    look = cached_listing if trouble else listing
    tried = [name.revision] if name.revision else ["main", CONVERTED]
    for revision in tried:
        commit, there = look(name.repo, revision)
        if configs := _configs(there):
            return commit, revision, configs[_config(name, configs)]
    if trouble:
        otherwise = "Load it once on a machine with a network and copy its cache (HF_HOME) here."
        raise no_copy(name.repo, trouble, otherwise)
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


def fetch(repo: str, commit: str, names: Sequence[str], otherwise: str = "") -> list[Path]:
    """The files `names` of the data set `repo`, from the cache if all are there, else from the hub.

    `otherwise` is what else the user can do, for the end of an error.

    Raises:
        RequestError: not cached and the hub can't be reached, or it has no such file.
    """
    if copy := cached(repo, commit, names):
        return copy
    if trouble := out_of_reach(repo):
        raise no_copy(repo, trouble, otherwise)
    with explained(repo, otherwise):
        _download_card(repo, commit)
        # the first one last: where it is, after an interruption, all are
        found = [_download(repo, commit, name) for name in reversed(names)]
    return found[::-1]


def cached(repo: str, commit: str, names: Sequence[str]) -> list[Path]:
    """Where copies of `names` lie on this machine; empty unless all of them do."""
    found = [path for name in names if (path := _cached(repo, commit, name))]
    return found if len(found) == len(names) else []


def licence(repo: str, revision: str) -> str | None:
    """What the card of `revision` in the cache names as the licence; None if it names none."""
    card = _cached(repo, revision, CARD)
    if card is None:
        return None
    import yaml
    from huggingface_hub import metadata_load

    try:
        named = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return ", ".join(map(str, named)) if isinstance(named, list) else named and str(named)


def listing(repo: str, revision: str) -> tuple[str, list[str]]:
    """The commit that `revision` is on the hub, and the names of its files.

    Raises:
        RequestError: the hub has no such data set or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    with explained(repo):
        try:
            info = HfApi().dataset_info(repo, revision=revision)
        except RevisionNotFoundError:
            if revision == CONVERTED:
                return "", []
            raise
    return info.sha or "", [file.rfilename for file in info.siblings or []]


def cached_listing(repo: str, revision: str) -> tuple[str, list[str]]:
    """As `listing`, of what the cache holds: no name at all if that is nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        copy = snapshot_download(
            repo, repo_type="dataset", revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return "", []
    files = [path.relative_to(copy).as_posix() for path in Path(copy).rglob("*.parquet")]
    return Path(copy).name, files


def remember(repo: str, revision: str, name: str) -> None:
    """Let the cache know which commit `revision` is, so that it is found without the hub.

    It learns it from a file, `name`, and from the card.
    """
    with explained(repo):
        _download_card(repo, card_of(revision))
        _download(repo, revision, name)


def card_of(revision: str) -> str:
    """The revision whose card speaks for `revision`: what the hub has converted has none."""
    return "main" if revision == CONVERTED else revision


def out_of_reach(repo: str) -> str | None:
    """Why the hub does not serve `repo`; None if it does. See `peftlab.network.problem`."""
    return problem(f"datasets/{repo}/resolve/main/{CARD}")


def no_copy(repo: str, trouble: str, otherwise: str) -> RequestError:
    """The error where neither cache nor hub serves."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    text = f"{repo} can't be loaded: no whole copy in the cache {cache}, and {trouble}."
    return RequestError(f"{text} {otherwise}".strip())


@contextmanager
def explained(repo: str, otherwise: str = "") -> Iterator[None]:
    """Whatever the hub answers inside is a wrong request."""
    try:
        yield
    except Exception as error:  # see `told`
        text = f"{repo} can't be loaded from the hub: {told(error)}."
        raise RequestError(f"{text} {otherwise}".strip()) from error


def _download(repo: str, revision: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision))


def _download_card(repo: str, revision: str) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    with suppress(EntryNotFoundError):  # a data set need not have one
        _download(repo, revision, CARD)


def _cached(repo: str, revision: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, repo_type="dataset", revision=revision)
    return Path(path) if isinstance(path, str) else None  # else None, or that the hub has none
