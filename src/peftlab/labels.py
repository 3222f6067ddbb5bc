"""Labels, with which a task's examples are answered; the names of classes; what is no text.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def check_names(names: Sequence[str], label_type: LabelType) -> None:
    """Raise `ValueError` unless the names of classes differ and each names a label of this type."""
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"labels has {repeated!r} twice; each class needs a name of its own")
    for name in names:
        try:
            typed_label(name, label_type)
        except ValueError:
            raise ValueError(
                f"label_type is {label_type}, and labels has {name!r}, which names none"
            ) from None


def check_encodable(text: str) -> None:
    """Raise `ValueError` if the text has half a surrogate pair, as JSON can spell one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = repr(text.encode(errors="backslashreplace"))
        raise ValueError(f"{shown} holds half a surrogate pair, which is no character") from None
