"""Any data set of the hub as a task: `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIG@REVISION`.

The data set's Parquet files are read, at a commit, as a user's own file is; its code never runs.
The files lie in a folder named after the config, or in data/ without a config; else the hub's own
conversion is read. The split `validation` judges, if there is one.

A file at a commit is the same everywhere, so it is taken from the cache if it is there. Where the
hub can't be reached (see `peftlab.network`) the cache serves, without the library's retries.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from peftlab.errors import RequestError, unknown
from peftlab.labels import AnyKind
from peftlab.network import describe_error, hub_problem
from peftlab.tasks.base import Task
from peftlab.tasks.files import file, rows

PREFIX = "hub:"
DEFAULT = "default"  # what the hub calls the config of a data set that has no other

_NAME = re.compile(r"hub:([^/@]+/[^/@]+)(?:/([^/@]+))?(?:@([\w./-]+))?")
_FILE = re.compile(
    r"(?:(?P<config>[^./][^/]*)/)?(?P<split>train|validation)"
    r"(?:-(?P<number>\d+)-of-(?P<total>\d+)(?:-\w+)?|/(?P<converted>\d+))?\.parquet"
)

Splits = dict[str, list[str]]  # split -> its files in order
CARD = "README.md"
CONVERTED = "refs/convert/parquet"  # where the hub keeps other formats converted to Parquet


@dataclass(frozen=True)
class Name:
    """A data set as the user names it: its repository, maybe with a config and a revision."""

    repo: str
    config: str | None
    revision: str | None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.repo, self.config)))


def is_on_hub(path: Path) -> bool:
    """Whether `path`, given in place of a file, names a data set of the hub."""
    return path.as_posix().startswith(PREFIX)


def load(
    path: Path,
    text: Sequence[str],
    label: str,
    kind: AnyKind = "auto",
) -> Task:
    """Make a task of the data set that `path` names: see `files.load` for the columns.

    Without a split `validation` a fifth of train is kept apart. Without a revision the newest is
    read; the task's source names its commit.

    Raises:
        RequestError: no such data set, config, column or Parquet files; a row that is not as it
            must be; or neither the cache nor the hub has the files.
    """
    name = parse_name(path.as_posix())
    commit, revision, splits = _locate(name)
    filenames = [entry for split in ("train", "validation") for entry in splits.get(split, [])]
    paths = dict(zip(filenames, fetch(name.repo, commit, filenames), strict=True))
    if commit != revision and why_unreachable(name.repo) is None:
        remember(name.repo, revision, filenames[0])
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
        licence=licence(name.repo, card_revision(revision)),
    )
    if "validation" in tables:
        return task
    note = f"{name} has no split validation: a fifth of train is kept apart"
    if why_unreachable(name.repo) is not None:
        note = (
            f"the copy of {name} in the cache has no split validation, which the hub may have: a "
            "fifth of train is kept apart"
        )
    return dataclasses.replace(task, notes=(*task.notes, note))


def parse_name(text: str) -> Name:
    """The parts of `hub:OWNER/NAME[/CONFIG][@REVISION]`.

    Raises:
        RequestError: `text` is not of that form, or can't be a name on the hub.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    form = "a data set of the hub is hub:OWNER/NAME, or hub:OWNER/NAME/CONFIG@REVISION"
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        raise RequestError(f"{form}, got {text!r}.")
    try:
        validate_repo_id(match[1])
    except HFValidationError as error:
        raise RequestError(f"{form}, got {text!r}: {error}") from None
    return Name(*match.groups())


def _locate(name: Name) -> tuple[str, str, Splits]:
    """The commit that has the files, the revision that led to it, and the files by split."""
    trouble = why_unreachable(name.repo)
    list_files = cached_listing if trouble else listing
    revisions = [name.revision] if name.revision else ["main", CONVERTED]
    for revision in revisions:
        commit, filenames = list_files(name.repo, revision)
        if configs := _configs(filenames):
            return commit, revision, configs[_choose_config(name, configs)]
    if trouble:
        remedy = "Load it once on a machine with a network and copy its cache (HF_HOME) here."
        raise no_copy(name.repo, trouble, remedy)
    raise RequestError(
        f"{name.repo} has no Parquet files of a split train at {' or '.join(revisions)}, such as "
        "data/train-00000-of-00001.parquet. Download what it has and give a file with --data FILE."
    )


def _configs(filenames: Iterable[str]) -> dict[str, Splits]:
    """The splits by config, for the configs that are complete and have a split train.

    >>> _configs(["data/train.parquet", "b/train-00000-of-00002.parquet", "README.md"])
    {'default': {'train': ['data/train.parquet']}}
    """
    by_config: dict[str, dict[str, list[re.Match[str]]]] = defaultdict(lambda: defaultdict(list))
    for match in filter(None, map(_FILE.fullmatch, sorted(filenames))):
        config = match["config"] if match["config"] not in (None, "data") else DEFAULT
        by_config[config][match["split"]].append(match)
    return {
        config: {split: [match[0] for match in matches] for split, matches in splits.items()}
        for config, splits in by_config.items()
        if "train" in splits and all(map(_is_complete, splits.values()))
    }


def _is_complete(matches: Sequence[re.Match[str]]) -> bool:
    """Whether the files of one split are numbered without a gap."""
    numbers = [int(match["number"] or match["converted"] or 0) for match in matches]
    totals = {int(match["total"] or len(matches)) for match in matches}
    return numbers == list(range(len(matches))) and totals == {len(matches)}


def _choose_config(name: Name, configs: dict[str, Splits]) -> str:
    if name.config is None and len(configs) > 1:
        raise RequestError(
            f"{name.repo} has several configs; give one as hub:{name.repo}/CONFIG: "
            f"{', '.join(configs)}."
        )
    config = name.config or next(iter(configs))
    if config not in configs:
        raise unknown(f"config of {name.repo}", config, configs)
    return config


def fetch(repo: str, commit: str, names: Sequence[str], remedy: str = "") -> list[Path]:
    """The files `names` of the data set `repo`, from the cache if all are there, else from the hub.

    `remedy` ends an error: what else the user can do.

    Raises:
        RequestError: not cached and the hub can't be reached, or it has no such file.
    """
    if copies := cached(repo, commit, names):
        return copies
    if trouble := why_unreachable(repo):
        raise no_copy(repo, trouble, remedy)
    with hub_refusals(repo, remedy):
        _download_card(repo, commit)
        # the first file last: if it is there after an interruption, all are
        paths = [_download(repo, commit, name) for name in reversed(names)]
    return paths[::-1]


def cached(repo: str, commit: str, names: Sequence[str]) -> list[Path]:
    """The paths of the cached copies of `names`; empty unless all of them are cached."""
    paths = [path for name in names if (path := _cached(repo, commit, name))]
    return paths if len(paths) == len(names) else []


def licence(repo: str, revision: str) -> str | None:
    """The licence that the cached card of `revision` names; None if it names none."""
    card = _cached(repo, revision, CARD)
    if card is None:
        return None
    import yaml
    from huggingface_hub import metadata_load

    try:
        value = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return ", ".join(map(str, value)) if isinstance(value, list) else value and str(value)


def listing(repo: str, revision: str) -> tuple[str, list[str]]:
    """The commit of `revision` on the hub, and the names of its files.

    Raises:
        RequestError: the hub has no such data set or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    with hub_refusals(repo):
        try:
            info = HfApi().dataset_info(repo, revision=revision)
        except RevisionNotFoundError:
            if revision == CONVERTED:
                return "", []
            raise
    return info.sha or "", [file.rfilename for file in info.siblings or []]


def cached_listing(repo: str, revision: str) -> tuple[str, list[str]]:
    """As `listing`, but of the copy in the cache; no commit and no names if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        copy = snapshot_download(
            repo, repo_type="dataset", revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return "", []
    names = [path.relative_to(copy).as_posix() for path in Path(copy).rglob("*.parquet")]
    return Path(copy).name, names


def remember(repo: str, revision: str, name: str) -> None:
    """Let the cache know which commit `revision` is, so that it is found without the hub.

    Downloading the file `name` and the card at that revision does so.
    """
    with hub_refusals(repo):
        _download_card(repo, card_revision(revision))
        _download(repo, revision, name)


def card_revision(revision: str) -> str:
    """The revision whose card describes `revision`: the hub's conversion has no card."""
    return "main" if revision == CONVERTED else revision


def why_unreachable(repo: str) -> str | None:
    """Why the hub does not serve `repo`; None if it does. See `peftlab.network.hub_problem`."""
    return hub_problem(f"datasets/{repo}/resolve/main/{CARD}")


def no_copy(repo: str, trouble: str, remedy: str) -> RequestError:
    """The error where neither the cache nor the hub has the files."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    text = f"{repo} can't be loaded: no whole copy in the cache {cache}, and {trouble}."
    return RequestError(f"{text} {remedy}".strip())


@contextmanager
def hub_refusals(repo: str, remedy: str = "") -> Iterator[None]:
    """Turn any error of the hub or its library inside into a `RequestError`."""
    try:
        yield
    except Exception as error:  # see `describe_error`
        text = f"{repo} can't be loaded from the hub: {describe_error(error)}."
        raise RequestError(f"{text} {remedy}".strip()) from error


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
    # it is None for a file that is not cached, and a marker for one that the hub does not have
    return Path(path) if isinstance(path, str) else None
