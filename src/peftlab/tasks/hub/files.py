"""Files of a data set on the hub, or of its copy in the hub's cache.

What is asked for at a commit is the same everywhere and is taken from the cache if it is there.
Where the hub can't be reached (see `peftlab.network`) the cache serves, without the library's
retries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from peftlab.errors import RequestError
from peftlab.network import problem

CARD = "README.md"
CONVERTED = "refs/convert/parquet"  # where the hub keeps other formats converted to Parquet


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
    except Exception as error:  # the library and its transport share no base class
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        text = f"{repo} can't be loaded from the hub: {reason}."
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
