"""What a cell ran on: versions, processor, and peftlab's own commit."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from peftlab.layers import quantiser
from peftlab.records.record import Environment

PACKAGES = (
    "peftlab",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
)
IF_INSTALLED = ("bitsandbytes",)


def environment(threads: int, precision: str | None = None) -> Environment:
    """The environment of this process, in which a base is held in `precision`."""
    commit, dirty = own_commit()
    return Environment(
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        packages=packages(),
        processor=processor(),
        gpu=gpu(),
        threads=threads,
        spin_count=os.environ.get("GOMP_SPINCOUNT", os.environ.get("OMP_WAIT_POLICY")),
        quantiser=quantiser() if precision == "nf4" else None,
    )


def packages() -> dict[str, str]:
    """Versions of the packages that numbers may depend on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    for name in IF_INSTALLED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def gpu() -> str | None:
    """The CUDA device's name, None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


@functools.cache
def own_commit() -> tuple[str | None, bool | None]:
    """The commit that peftlab runs from and whether its files differ; nulls if from a package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit.strip(), bool(_git(root, "status", "--porcelain").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout
