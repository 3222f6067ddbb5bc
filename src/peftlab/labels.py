"""Labels: what a task's examples are answered with, and the names of its classes.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Kind = Literal["classes", "regression"]
AnyKind = Literal["auto", Kind]  # auto: told by the labels
Label = str | int | float | bool
LabelType = Literal["str", "int", "float", "bool"]


def typed_label(name: str, label_type: LabelType) -> Label:
    """The label for which a class's name stands; ValueError if it can't.

    >>> typed_label("3", "int"), typed_label("3", "str"), typed_label("true", "bool")
    (3, '3', True)
    """
    match label_type:
        case "bool":
            return bool(("false", "true").index(name))
        case "int":
            return int(name)
        case "float":
            return float(name)
        case "str":
            return name


def check_names(names: Iterable[str], label_type: LabelType) -> None:
    """Raise `ValueError` unless each class's name stands for a label of this type."""
    for name in names:
        try:
            typed_label(name, label_type)
        except ValueError:
            raise ValueError(
                f"label_type is {label_type}, and labels has {name!r}, which names none"
            ) from None
