"""The lowest version of each library that pyproject.toml allows, as constraints for pip.

torch is left out: its old wheels bring three gigabytes of CUDA's libraries. 2.6 was tried by hand
(LOG.md, 2026-12-01).
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for wanted in [*project["dependencies"], *extras["qlora"], *extras["tune"]]:
    name, lowest = re.fullmatch(r"([\w-]+)>=([\w.]+)", wanted).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
