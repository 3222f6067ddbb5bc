"""Where what can be fetched or made again is kept.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`peftlab` in the user's cache: below XDG_CACHE_HOME, or ~/.cache. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftlab"
