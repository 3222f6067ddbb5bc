"""What importing a model's code brings along, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import peftlab.models
from transformers.models.bert import modeling_bert
assert "scipy" not in sys.modules, "transformers has imported scipy"
import scipy.stats
assert scipy.stats.pearsonr([1, 2, 3], [1, 2, 4]).statistic > 0.9
"""


def test_an_architecture_does_not_import_scipy_and_others_still_can() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
