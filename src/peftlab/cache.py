"""The folder for what can be downloaded or built again.

Every room may import this file and it imports none of them.
"""

from __future__ import annotations

import os
from pathlib import Path

from peftlab.errors import RequestError


def cache_folder() -> Path:
    """The folder `peftlab` in XDG_CACHE_HOME, or in ~/.cache. It may not exist yet.

    Raises:
        RequestError: for a user without a home folder, as some containers have, and no
            XDG_CACHE_HOME.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(folder or Path.home() / ".cache") / "peftlab"
    except RuntimeError:
        raise RequestError(
            "this user has no home folder; set XDG_CACHE_HOME to a folder for what is built and "
            "downloaded"
        ) from None
