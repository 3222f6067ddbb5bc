"""The exception of a wrong request, and the wording of its messages.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import errno
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

MOST_NAMES = 12  # of a folder's content
MOST_FINDINGS = 5  # shown per field: each example of a data set may have one
SHORT_REPR = reprlib.Repr()  # for a given value, which may be a data set
SHORT_REPR.maxstring = SHORT_REPR.maxother = 100
# what json.loads and tomllib.loads raise; RecursionError if the text is nested too deeply
JSON_ERRORS = (ValueError, RecursionError)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # an `OSError`'s number: no fault of the request


class RequestError(ValueError):
    """The request is wrong: nothing was trained. Says what was given, what is allowed, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def unknown(kind: str, given: object, allowed: Iterable[str], hint: str = "") -> RequestError:
    """An error for a name that is not in `allowed`, with the nearest one suggested.

    >>> str(unknown("method", "lroa", ["full", "lora"]))
    "unknown method 'lroa'; did you mean 'lora'? Allowed: full, lora."
    """
    names = list(allowed)
    near = difflib.get_close_matches(str(given), names, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    text = f"unknown {kind} {given!r}; {guess}Allowed: {', '.join(names) or 'none'}."
    return RequestError(f"{text} {hint}".strip())


def one_line(error: object, most: int = 300) -> str:
    """The message of an error on one line of at most `most` characters.

    >>> one_line(ValueError("two   words"), most=5)
    'two w'
    """
    return " ".join(str(error).split())[:most]


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by the home folder.

    Raises:
        RequestError: if that user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{path} can't be found: {error}") from None


def contents(folder: Path) -> str:
    """The names in a folder, for a message: "it holds config.json, notes.txt"."""
    names = sorted(path.name for path in folder.iterdir())[:MOST_NAMES]
    return f"it holds {', '.join(names) or 'nothing'}"


@contextmanager
def system_refusals(problem: str) -> Iterator[None]:
    """Turn an `OSError` inside, such as too long a name, into a `RequestError` about `problem`.

    A full disk stays an `OSError`: the request was right, and much may have been trained before.

    >>> with system_refusals("a can't be read"):
    ...     raise PermissionError(13, "Permission denied")
    Traceback (most recent call last):
    peftlab.errors.RequestError: a can't be read: Permission denied
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise RequestError(f"{problem}: {error.strerror or error}") from error


def explain(
    error: ValidationError,
    owner: str,
    fields: Iterable[str] = (),
    inside: Mapping[str, Iterable[str]] | None = None,
) -> RequestError:
    """Pydantic's findings about `owner`, one clause each: the field, the rule, the value given.

    Args:
        error: holds the findings.
        owner: the name of the object that the fields belong to.
        fields: the allowed names, in the order of positional arguments.
        inside: the allowed names within a field that is a table.
    """
    fields, by_field = list(fields), dict[str, list[str]]()
    for finding in error.errors(include_url=False):
        loc = list(finding["loc"])
        if loc and isinstance(loc[0], int) and loc[0] < len(fields):  # a positional argument
            loc[0] = fields[loc[0]]
        clause = _describe_finding(finding, loc, owner, fields, inside or {})
        by_field.setdefault(str(loc[0]) if loc else "", []).append(clause)
    for clauses in by_field.values():
        if len(clauses) > MOST_FINDINGS:
            clauses[MOST_FINDINGS:] = [f"and {len(clauses) - MOST_FINDINGS:,} more like these"]
    return RequestError("; ".join(clause for clauses in by_field.values() for clause in clauses))


def _describe_finding(
    finding: Mapping[str, Any],
    loc: list[Any],
    owner: str,
    fields: list[str],
    inside: Mapping[str, Iterable[str]],
) -> str:
    """One finding, at `loc`, as a clause."""
    where, given = ".".join(map(str, loc)) or "value", SHORT_REPR.repr(finding["input"])
    cause = finding.get("ctx", {}).get("error")
    match finding["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            *outer, name = map(str, finding["loc"])
            allowed = inside.get(outer[0], fields) if outer else fields
            return str(unknown(f"setting of {'.'.join([owner, *outer])}", name, allowed))
        case "missing":
            return f"{owner}: {where} is missing"
        case "too_short":
            return f"{owner}: {where} must name at least one, got {given}"
        # about the whole value, which may be a data set; or in words that name the field already
        case "value_error" if not loc or isinstance(cause, RequestError):
            return f"{owner}: {cause}"
    rule = finding["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{owner}: {where} must be {rule}, got {given}"


def expect(name: str, given: object, kinds: type | tuple[type, ...], words: str) -> None:
    """Raise `RequestError` unless `given` is of one of `kinds`, which `words` describe.

    >>> expect("seed", "3", int, "a whole number")
    Traceback (most recent call last):
        ...
    peftlab.errors.RequestError: seed must be a whole number, got '3'
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(given, kinds) or (isinstance(given, bool) and bool not in kinds):
        raise RequestError(f"{name} must be {words}, got {reprlib.repr(given)}")


def expect_path(name: str, given: object) -> None:
    """Raise `RequestError` unless `given` is a path, as a string or as a `Path`."""
    expect(name, given, (str, os.PathLike), "a path")


def check_seed(given: object) -> int:
    """The seed; raises `RequestError` unless it is a number that every generator takes."""
    seed = plain(given)
    expect("seed", seed, int, "a whole number")
    assert isinstance(seed, int)
    if not 0 <= seed < 2**32:  # not shown: it may have 10,000 digits
        raise RequestError("seed must be at least 0 and less than 2**32")
    return seed


def plain(value: Any) -> Any:
    """A number of numpy's, such as the largest label of a table, as Python's; else `value`."""
    is_numpy_scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_numpy_scalar else value


class Explained(abc.ABCMeta):
    """A metaclass: wrong arguments raise `RequestError`, not pydantic's `ValidationError`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        kwargs = {name: plain(value) for name, value in kwargs.items()}
        try:
            return super().__call__(*map(plain, args), **kwargs)
        except ValidationError as error:
            owner = getattr(cls, "name", cls.__name__)  # a method's name is the command line's
            fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
            raise explain(error, owner, [field.name for field in fields]) from None
