"""What grouping by length costs: `python experiments/batches.py RANDOM GROUPED`, two folders."""

from __future__ import annotations

import sys
from pathlib import Path

from paired import paired

LOSS, EXCLUDED = 0.005, 0.02  # of a score


def main(random: Path, grouped: Path) -> None:
    harmful = []
    for row in paired(random, grouped):
        print(row)
        if row.high < -LOSS or row.low <= -EXCLUDED:
            harmful.append(f"{row.task} {row.method}")
    print(f"rows in which grouping loses, or may lose two points: {', '.join(harmful) or 'none'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
