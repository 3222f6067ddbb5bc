"""Names and numbers as a user reads them: in a path, a line of text, a list of names.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

FEW = 5  # names that a message lists
_COLUMN = re.compile(r'\s*(?:"([^"]*)"\s*(?=,|\Z)|([^,]+))')


def slug(text: str, otherwise: str = "unnamed") -> str:
    """The text as a name that is safe in a path; `otherwise` if no character of it is.

    >>> slug("../My Data (v2)"), slug("für 2024–25")
    ('my-data-v2', 'fur-2024-25')
    """
    letters = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or otherwise


def named(stem: str) -> str:
    """The slug of a file's name; without Latin letters or digits a hash, so that names differ.

    >>> named("Reviews 2024"), named("\u8bc4\u8bba")
    ('reviews-2024', 'data-6849b8')
    """
    return slug(stem, f"data-{hashlib.sha256(stem.encode()).hexdigest()[:6]}")


def title(task: str, label: str, seed: int) -> str:
    """The title of a cell: its task, its row and its seed.

    >>> title("cola", "LoRA r=16", 0)
    'cola · LoRA r=16 · seed 0'
    """
    return f"{task} · {label} · seed {seed}"


def counted(n: int, noun: str) -> str:
    """The number and the noun, in the plural unless `n` is 1.

    >>> counted(1, "cell"), counted(1200, "cell")
    ('1 cell', '1,200 cells')
    """
    return f"{n:,} {noun}{'s' * (n != 1)}"


def listed(names: Iterable[str], last: str = "and") -> str:
    """The names as a sentence lists them, with `last` before the last one.

    >>> listed(["full", "lora", "dora"]), listed(["cpu", "cuda"], "or")
    ('full, lora and dora', 'cpu or cuda')
    """
    *first, final = names
    return f"{', '.join(first)} {last} {final}" if first else final


def few(names: Sequence[str], between: str = ", ") -> str:
    """The first `FEW` names, joined by `between`, and how many more there are.

    >>> few("abcdef"), few([])
    ('a, b, c, d, e and 1 more', 'none')
    """
    shown = between.join(names[:FEW]) or "none"
    return f"{shown} and {len(names) - FEW} more" if len(names) > FEW else shown


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, rounded as a person would say them.

    >>> duration(0.2), duration(42), duration(100), duration(754), duration(9000)
    ('1 second', '42 seconds', '2 minutes', '13 minutes', '2.5 hours')
    """
    if seconds < 90:
        return counted(math.ceil(seconds), "second")
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def columns(text: str) -> list[str]:
    """The names of columns in a list; one with a comma stands in double quotes, as in CSV.

    >>> columns('title, "my text, the 1st"'), columns('läbel "x"')
    (['title', 'my text, the 1st'], ['läbel "x"'])
    """
    # not by the csv module, which takes a line break in a name for the end of the list
    names = (quoted or plain for quoted, plain in _COLUMN.findall(text))
    return [name.strip() for name in names if name.strip()]


def words(text: str) -> list[str]:
    """The words of a list, split at the commas outside brackets.

    >>> words("lora[rank=2,targets=layer.[01].query], head")
    ['lora[rank=2,targets=layer.[01].query]', 'head']
    >>> words("a],b")
    ['a]', 'b']
    """
    parts, depth = [""], 0
    for character in text:
        depth = max(0, depth + {"[": 1, "]": -1}.get(character, 0))
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
