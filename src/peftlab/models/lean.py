"""transformers, told that there is no scipy: it would load 33 MiB for a loss of object detection.

It asks once which packages there are, so this must be its first import in the process; where it is
not, nothing is lost but the memory. Behind it scipy can be imported as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

if not {"scipy", "transformers"} & sys.modules.keys():
    sys.modules["scipy"] = None  # type: ignore[assignment]  # how Python is told so
    try:
        from transformers.utils.import_utils import is_scipy_available

        is_scipy_available()
    finally:
        del sys.modules["scipy"]

import transformers
from transformers.utils import logging

__all__ = ["quiet", "transformers"]


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' report on the head's missing weights (we draw them) and its bars."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
