"""What grouping by length costs: `python experiments/batches.py GROUPED RANDOM`, two folders.

For each task and method the difference grouped - random of the main metric after the last epoch,
paired by seed, with Student's 95 % interval of its mean; then the time that random batches take.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scipy.stats import ttest_1samp

from peftlab.records.record import Record

LOSS, EXCLUDED = 0.005, 0.02  # of a score

Key = tuple[str, str, int]


def read(folder: Path) -> dict[Key, Record]:
    records = [Record.model_validate_json(p.read_text()) for p in folder.glob("records/*.json")]
    return {(r.task.name, r.method.name, r.seed): r for r in records if r.status == "done"}


def main() -> None:
    grouped, random = (read(Path(folder)) for folder in sys.argv[1:])
    rows = sorted({key[:2] for key in grouped.keys() & random.keys()})
    harmful = []
    for row in rows:
        pairs = [
            (grouped[key], random[key])
            for key in sorted(grouped.keys() & random.keys())
            if key[:2] == row
        ]
        differences = [
            one.score[one.task.main_metric] - other.score[other.task.main_metric]
            for one, other in pairs
        ]
        if len(pairs) < 2:  # one difference has no interval
            continue
        test = ttest_1samp(differences, 0.0)
        low, high = test.confidence_interval(0.95)
        mean = sum(differences) / len(differences)
        time = sum(other.train_s for _, other in pairs) / sum(one.train_s for one, _ in pairs)
        print(
            f"{row[0]:14} {row[1]:6} {len(pairs)} seeds  {mean:+.4f}  [{low:+.4f}, {high:+.4f}]  "
            f"time {time:.2f}"
        )
        if high < -LOSS or low <= -EXCLUDED:
            harmful.append(" ".join(row))
    print(f"rows in which grouping loses, or may lose two points: {', '.join(harmful) or 'none'}")


if __name__ == "__main__":
    main()
