"""The folder for what can be downloaded or built again.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder `peftlab` in XDG_CACHE_HOME, or in ~/.cache. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftlab"
