"""The lowest version of each library that pyproject.toml allows, as constraints for pip.

torch and transformers are left out: their newest are what the numbers are of. Their lowest were
tried by hand (LOG.md, 2026-12-01); torch's brings three gigabytes of CUDA's libraries.
"""

import re
import tomllib
from pathlib import Path

NEWEST = {"torch", "transformers"}

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for wanted in [*project["dependencies"], *extras["qlora"], *extras["tune"]]:
    name, lowest = re.fullmatch(r"([\w-]+)>=([\w.]+)", wanted).groups()
    if name not in NEWEST:
        print(f"{name}=={lowest}")
