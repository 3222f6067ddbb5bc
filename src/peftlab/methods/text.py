"""A method as text, `lora[rank=16,lr=1e-3]`, and a list of them with commas between."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from peftlab.errors import JSON_ERRORS, RequestError
from peftlab.methods.registry import METHODS


def parse_methods(text: str) -> list[dict[str, Any]]:
    """A list of methods: `lora,lora[rank=16,lr=1e-3],dora`, or `all`.

    >>> parse_methods("lora[targets=layer.[01].query,rank=2] ,, head")
    [{'name': 'lora', 'targets': 'layer.[01].query', 'rank': 2}, {'name': 'head'}]
    """
    words = list(METHODS) if text.strip() == "all" else _words(text)
    return [parse_method(word) for word in words]


def parse_method(text: str) -> dict[str, Any]:
    """A method as a table: its name, and the fields in its brackets.

    Raises:
        RequestError: if the text is not NAME or NAME[field=value,...].

    >>> parse_method("lora[rank=16,lr=1e-3,targets=query,value]")
    {'name': 'lora', 'rank': 16, 'lr': 0.001, 'targets': 'query,value'}
    """
    found = re.fullmatch(r"([\w-]+)(?:\[(.*)\])?", text.strip())
    if found is None:
        raise RequestError(f"a method is NAME or NAME[field=value,...], got {text!r}")
    name, inside = found[1], found[2]
    given: dict[str, Any] = {"name": name}
    # a comma begins a new field only where NAME= follows: targets=query,value is one field
    for part in re.split(r",(?=\s*\w+\s*=)", inside or ""):
        field, equals, value = part.partition("=")
        if part.strip() and not equals:
            raise RequestError(f"{part!r} in {text!r} must be field=value")
        if part.strip():
            given[field.strip()] = parse_value(value.strip())
    return given


def parse_value(text: str) -> Any:
    """A value as TOML reads it, else the text itself.

    >>> parse_value("16"), parse_value("1e-3"), parse_value("query,value")
    (16, 0.001, 'query,value')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except JSON_ERRORS:
        return text


def _words(text: str) -> list[str]:
    """The words of a list, at the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
