"""What a wrong request looks like: one exception, and the words that help to mend it.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

MOST_FINDINGS = 5  # of one field that are told: each example of a data set may have its own
SHOWN = reprlib.Repr()  # of a value that was given, which may be a data set
SHOWN.maxstring = SHOWN.maxother = 100
# what json.loads and tomllib.loads raise: the latter for what is nested too deeply
JSON_ERRORS = (ValueError, RecursionError)


class RequestError(ValueError):
    """The request is wrong: nothing was trained. Says what was given, what is allowed, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def unknown(kind: str, given: str, allowed: Iterable[str], hint: str = "") -> RequestError:
    """An error for a name that is not in `allowed`, with the nearest one suggested.

    >>> str(unknown("method", "lroa", ["full", "lora"]))
    "unknown method 'lroa'; did you mean 'lora'? Allowed: full, lora."
    """
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    text = f"unknown {kind} {given!r}; {guess}Allowed: {', '.join(names) or 'none'}."
    return RequestError(f"{text} {hint}".strip())


def one_line(error: object, most: int = 300) -> str:
    """What an error says, on one line of at most `most` characters.

    >>> one_line(ValueError("two   words"), most=5)
    'two w'
    """
    return " ".join(str(error).split())[:most]


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path, `~` resolved.

    Raises:
        RequestError: if it is the home folder of nobody.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{path} can't be found: {error}") from None


@contextmanager
def system_refusals(problem: str) -> Iterator[None]:
    """What the system refuses inside, such as too long a name, is a wrong request: `problem`.

    >>> with system_refusals("a can't be read"):
    ...     raise PermissionError(13, "Permission denied")
    Traceback (most recent call last):
    peftlab.errors.RequestError: a can't be read: Permission denied
    """
    try:
        yield
    except OSError as error:
        raise RequestError(f"{problem}: {error.strerror or error}") from error


def explain(
    error: ValidationError,
    owner: str,
    fields: Iterable[str] = (),
    inside: Mapping[str, Iterable[str]] | None = None,
) -> RequestError:
    """Pydantic's findings about `owner` in one line each: the field, the rule, the value given.

    Args:
        error: what it found.
        owner: what the fields are of.
        fields: that are allowed.
        inside: those that are allowed within a field.
    """
    fields, lines = list(fields), dict[str, list[str]]()
    for found in error.errors(include_url=False):
        loc = list(found["loc"])
        if loc and isinstance(loc[0], int) and loc[0] < len(fields):  # it was given by position
            loc[0] = fields[loc[0]]
        told = _told(found, loc, owner, fields, inside or {})
        lines.setdefault(str(loc[0]) if loc else "", []).append(told)
    for of_field in lines.values():
        if len(of_field) > MOST_FINDINGS:
            of_field[MOST_FINDINGS:] = [f"and {len(of_field) - MOST_FINDINGS:,} more like these"]
    return RequestError("; ".join(line for of_field in lines.values() for line in of_field))


def _told(
    found: Mapping[str, Any],
    loc: list[Any],
    owner: str,
    fields: list[str],
    inside: Mapping[str, Iterable[str]],
) -> str:
    """One finding, at `loc`, in a line."""
    where, given = ".".join(map(str, loc)) or "value", SHOWN.repr(found["input"])
    said = found.get("ctx", {}).get("error")
    match found["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            *outer, name = map(str, found["loc"])
            known = inside.get(outer[0], fields) if outer else fields
            return str(unknown(f"setting of {'.'.join([owner, *outer])}", name, known))
        case "missing":
            return f"{owner}: {where} is missing"
        case "too_short":
            return f"{owner}: {where} must name at least one, got {given}"
        # of a whole value, which may be a data set; or in words that name the field themselves
        case "value_error" if not loc or isinstance(said, RequestError):
            return f"{owner}: {said}"
    rule = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{owner}: {where} must be {rule}, got {given}"


def expect(name: str, given: object, kinds: type | tuple[type, ...], words: str) -> None:
    """Raise `RequestError` unless `given` is of one of `kinds`; `words` say which are allowed.

    >>> expect("seed", "3", int, "a whole number")
    Traceback (most recent call last):
        ...
    peftlab.errors.RequestError: seed must be a whole number, got '3'
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(given, kinds) or (isinstance(given, bool) and bool not in kinds):
        shown = reprlib.repr(given)
        raise RequestError(f"{name} must be {words}, got {shown}")


def expect_path(name: str, given: object) -> None:
    """Raise `RequestError` unless `given` is a path, as text or as a `Path`."""
    expect(name, given, (str, os.PathLike), "a path")


def check_seed(seed: object) -> None:
    """Raise `RequestError` unless `seed` is one that every generator takes."""
    expect("seed", seed, int, "a whole number")
    if isinstance(seed, int) and not 0 <= seed < 2**32:  # not shown: it may have 10,000 digits
        raise RequestError("seed must be at least 0 and less than 2**32")


class Explained(abc.ABCMeta):
    """The class of classes whose wrong arguments are a `RequestError`, not pydantic's own error."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        try:
            return super().__call__(*args, **given)
        except ValidationError as error:
            owner = getattr(cls, "name", cls.__name__)  # a method's, as on the command line
            fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
            raise explain(error, owner, [field.name for field in fields]) from None
