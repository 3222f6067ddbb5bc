"""transformers, told that there is no scipy: it would load 33 MiB for a loss of object detection.

It asks once which packages there are, so this must be its first import in the process; where it is
not, nothing is lost but the memory. Behind it scipy can be imported as ever.
"""

from __future__ import annotations

import sys

if not {"scipy", "transformers"} & sys.modules.keys():
    sys.modules["scipy"] = None  # type: ignore[assignment]  # how Python is told so
    try:
        from transformers.utils.import_utils import is_scipy_available

        is_scipy_available()
    finally:
        del sys.modules["scipy"]

import transformers

__all__ = ["transformers"]
