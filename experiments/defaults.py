"""The rates that the protocol's records choose: `python experiments/defaults.py results/defaults`.

Below the folder is one of `peftlab compare` for each model. Of each method the lowest rate is taken
whose mean score over the tasks is within `TIE` of the best one's: it is the safer one where a
training is longer or a model larger than here.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from peftlab.bench.record import Record

TIE = 0.01  # of a score

Scores = dict[float, dict[str, float]]  # by rate and task


def read(folder: Path) -> dict[str, Scores]:
    """By method, the main score on each task at each rate; a cell that failed scores 0."""
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("records/*.json")):
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
        score = record.score[record.task.main_metric] if record.score else 0.0
        found[record.method.name][record.training["lr"]][record.task.name] = score
    return found


def means(scores: Scores) -> dict[float, float]:
    """By rate, the mean over the tasks."""
    return {rate: statistics.fmean(of_tasks.values()) for rate, of_tasks in sorted(scores.items())}


def choose(scores: Scores) -> float:
    """The lowest rate within `TIE` of the best mean."""
    of_rates = means(scores)
    return min(rate for rate, mean in of_rates.items() if mean >= max(of_rates.values()) - TIE)


def main() -> None:
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        methods = read(folder)
        tasks = sorted({t for scores in methods.values() for of in scores.values() for t in of})
        print(f"{folder.name}: mean over {', '.join(tasks)}")
        for method, scores in methods.items():
            rates = "  ".join(f"{rate:g} {mean:.3f}" for rate, mean in means(scores).items())
            print(f"  {method:11} {choose(scores):g}   of {rates}")


if __name__ == "__main__":
    main()
