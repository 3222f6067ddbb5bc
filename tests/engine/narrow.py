"""The kernels as processors with narrower vectors have them: `make narrow`.

Their tests again, built for AVX2 alone and for neither: what this processor has beyond that would
else be all that is ever tried.
"""

from __future__ import annotations

import platform
import subprocess
import sys

NARROWER = {"x86_64": ("haswell", "x86-64")}
TESTS = (
    "test_sentences.py",
    "test_dropout.py",
    "test_gelu.py",
    "test_low_rank.py",
    "test_packing.py",
    "../layers/test_gain.py",
    "../layers/test_rows.py",
)


def main() -> int:
    """Each in a process of its own: torch takes an operation's kernel once."""
    failed = 0
    narrower = NARROWER.get(platform.machine(), ())
    if not narrower:
        print(f"nothing to do on {platform.machine()}: its vectors are the narrowest")
    for name in narrower:
        print(f"-march={name}", flush=True)
        failed |= subprocess.run([sys.executable, "-P", __file__, name], check=False).returncode
    return failed


def run(name: str) -> int:
    """The kernels' tests, built for the processor of this name."""
    import pytest

    from peftlab.layers import native

    native.FLAGS[native.FLAGS.index("-march=native")] = f"-march={name}"
    folder = __file__.rpartition("/")[0]
    return pytest.main(["-q", *(f"{folder}/{test}" for test in TESTS)])


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]) if sys.argv[1:] else main())
