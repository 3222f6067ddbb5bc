"""A data set from the Hugging Face hub, or from its cache.

Where the hub can't be reached (see `peftlab.network`) the cache serves, without the libraries'
retries.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.errors import RequestError
from peftlab.network import problem


@dataclass(frozen=True)
class Loaded:
    """A data set of the hub: its splits (a `datasets.DatasetDict`), and its commit if known."""

    splits: Any
    revision: str | None


def cached(repo: str, config: str, splits: Sequence[str]) -> Path | None:
    """Where a copy of `config` of `repo` lies on this machine; None if there is none.

    Either in `datasets`' cache, made by loading it once, or its Parquet files in the hub's cache,
    made by `hf download REPO --repo-type dataset`, if every one of `splits` is there.
    """
    return _prepared(repo, config) or _downloaded(repo, config, splits)


def load(repo: str, config: str, splits: Sequence[str], otherwise: str = "") -> Loaded:
    """Load `config` of the data set `repo`, from a cache if it can be, else from the hub.

    Args:
        repo: the data set, as "nyu-mll/glue".
        config: its configuration.
        splits: those that the caller will read.
        otherwise: what else the user can do, for the end of an error.

    Raises:
        RequestError: not cached and the hub can't be reached, or it has no such data.
    """
    copy, source = _prepared(repo, config), repo
    trouble = None if copy else _offline_datasets() or problem(_card(repo))
    if trouble:
        copy = _downloaded(repo, config, splits)
        source = str(copy)
    if trouble and copy is None:
        text = f"{repo} ({config}) can't be loaded: no copy in the cache {_cache()}, and {trouble}."
        raise RequestError(f"{text} {otherwise}".strip())
    try:
        with _libraries(offline=copy is not None):
            import datasets

            loaded = datasets.load_dataset(source, config)
    except Exception as error:  # the libraries share no base class for what may go wrong
        place = f"the cache ({copy}; delete it to load afresh)" if copy else "the hub"
        reason = f"{type(error).__name__}: {error}".strip().rstrip(".")
        text = f"{repo} ({config}) can't be loaded from {place}: {reason}."
        raise RequestError(f"{text} {otherwise}".strip()) from error
    return Loaded(loaded, _commit(copy) or _revision(loaded))


def _card(repo: str) -> str:
    """The address of the first file that loading `repo` asks for."""
    return f"datasets/{repo}/resolve/main/README.md"


def _prepared(repo: str, config: str) -> Path | None:
    root = _cache() / repo.replace("/", "___") / config
    found = [path.parent for path in root.glob("*/*/dataset_info.json")]
    found = [folder for folder in found if folder.suffix != ".incomplete"]  # an interrupted load
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _downloaded(repo: str, config: str, splits: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(repo, "README.md", repo_type="dataset")
    if not isinstance(card, str):  # None, or a mark that the hub has no such file
        return None
    snapshot = Path(card).parent
    complete = all(any((snapshot / config).glob(f"{split}-*.parquet")) for split in splits)
    return snapshot if complete else None


def _cache() -> Path:
    """Where `datasets` keeps its cache, without the second that importing it takes."""
    if "datasets" in sys.modules:
        from datasets import config

        return Path(config.HF_DATASETS_CACHE).expanduser()
    from huggingface_hub import constants

    folder = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    return Path(folder).expanduser()


def _offline_datasets() -> str | None:
    asked = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return "HF_DATASETS_OFFLINE is set" if asked else None


def _revision(splits: Any) -> str | None:
    """The commit, which `datasets` makes the name of the folder that a split is cached in."""
    folders = [
        Path(file["filename"]).parent for files in splits.cache_files.values() for file in files
    ]
    return _commit(folders[0]) if folders else None


def _commit(folder: Path | None) -> str | None:
    """The folder's name if it is a commit, as in both caches."""
    return folder.name if folder and re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


@contextmanager
def _libraries(offline: bool) -> Iterator[None]:
    """Both libraries without their log lines and, if not on a terminal, progress bars.

    Offline, they ask the network nothing: what they would look up is in the cache already.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.utils import logging as hub_logging

    switches = [huggingface_hub.constants, datasets.config]
    before = [module.HF_HUB_OFFLINE for module in switches]
    levels = hub_logging.get_verbosity(), datasets.logging.get_verbosity()
    owners = [datasets.utils, huggingface_hub.utils]
    hidden = [owner.are_progress_bars_disabled() for owner in owners]
    try:
        hub_logging.set_verbosity(logging.ERROR)
        datasets.logging.set_verbosity(logging.ERROR)
        for owner, was in zip(owners, hidden, strict=True):
            _show_bars(owner, not was and not offline and sys.stderr.isatty())
        for module, was in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = offline or was
        yield
    finally:
        for module, was in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = was
        for owner, was in zip(owners, hidden, strict=True):
            _show_bars(owner, not was)
        hub_logging.set_verbosity(levels[0])
        datasets.logging.set_verbosity(levels[1])


def _show_bars(owner: Any, show: bool) -> None:
    with warnings.catch_warnings():  # it warns where the user's environment has decided already
        warnings.simplefilter("ignore")
        (owner.enable_progress_bars if show else owner.disable_progress_bars)()
