"""How things are called where a user meets them: in a path, and in a line of text.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import re


def slug(text: str, otherwise: str = "unnamed") -> str:
    """A name that is safe in a path; `otherwise` where nothing of it is left.

    >>> slug("../My Data (v2)")
    'my-data-v2'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or otherwise


def title(task: str, label: str, seed: int) -> str:
    """A cell's.

    >>> title("cola", "LoRA r=16", 0)
    'cola · LoRA r=16 · seed 0'
    """
    return f"{task} · {label} · seed {seed}"
