"""What products in eight bits cost: `python experiments/int8.py BF16 INT8`, two folders."""

from __future__ import annotations

import sys
from pathlib import Path

from paired import paired

WITHIN = 0.015  # of a score: how far an interval around 0 may reach


def main(bf16: Path, int8: Path) -> None:
    outside = []
    for row in paired(bf16, int8):
        print(row)
        if not -WITHIN <= row.low <= 0 <= row.high <= WITHIN:
            outside.append(f"{row.task} {row.method}")
    print(f"rows whose interval leaves out 0 or ±{WITHIN}: {', '.join(outside) or 'none'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
