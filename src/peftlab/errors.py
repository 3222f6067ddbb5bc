"""What a wrong request looks like: one exception, and the words that help to mend it.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

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


def explain(error: ValidationError, owner: str, fields: Iterable[str] = ()) -> RequestError:
    """Pydantic's findings about `owner` in one line each: the field, the rule, the value given."""
    lines = []
    for found in error.errors(include_url=False):
        where = ".".join(str(part) for part in found["loc"]) or "value"
        if found["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            inner = ".".join([owner, *map(str, found["loc"][:-1])])
            lines.append(str(unknown(f"setting of {inner}", str(found["loc"][-1]), fields)))
            continue
        if found["type"] == "missing":
            lines.append(f"{owner}: {where} is missing")
            continue
        if found["type"] == "too_short":
            lines.append(f"{owner}: {where} must name at least one, got {found['input']!r}")
            continue
        rule = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        lines.append(f"{owner}: {where} must be {rule}, got {found['input']!r}")
    return RequestError("; ".join(lines))
