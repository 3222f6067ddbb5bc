"""The rates that the protocol's records choose: `python experiments/defaults.py results/defaults`.

Below the folder is one of `peftlab compare` for each model. Of each method the lowest rate is taken
whose mean accuracy over the tasks is within one standard error of the best one's (Breiman et al.
1984, section 3.4.3): it is the safer one where a training is longer or a model larger than here.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from peftlab.records.record import Record


class Score(NamedTuple):
    """The accuracy on a task's dev part, and how many examples that has."""

    accuracy: float
    n: int

    @property
    def variance(self) -> float:
        """Of the accuracy; a share of 1 among n is taken for (n + 1) / (n + 2), which has one."""
        share = (self.accuracy * self.n + 1) / (self.n + 2)
        return share * (1 - share) / self.n


Scores = dict[float, dict[str, Score]]  # by rate and task


def read(folder: Path) -> dict[str, Scores]:
    """By method, the score on each task at each rate; a cell that failed has none right."""
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("records/*.json")):
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
        accuracy = record.score["accuracy"] if record.score else 0.0
        score = Score(accuracy, record.task.n_dev)
        found[record.method.name][record.training["lr"]][record.task.name] = score
    return found


def mean(scores: dict[str, Score]) -> float:
    """Over the tasks."""
    return statistics.fmean(score.accuracy for score in scores.values())


def standard_error(scores: dict[str, Score]) -> float:
    """Of the mean over the tasks, by the examples that they are judged on."""
    return math.sqrt(sum(score.variance for score in scores.values())) / len(scores)


def choose(scores: Scores) -> float:
    """The lowest rate whose mean is within one standard error of the best one's."""
    best = max(scores.values(), key=mean)
    return min(rate for rate in scores if mean(scores[rate]) >= mean(best) - standard_error(best))


def main() -> None:
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        methods = read(folder)
        tasks = sorted({t for scores in methods.values() for of in scores.values() for t in of})
        print(f"{folder.name}: mean accuracy over {', '.join(tasks)}")
        for method, scores in methods.items():
            rates = "  ".join(f"{rate:g} {mean(of):.3f}" for rate, of in sorted(scores.items()))
            print(f"  {method:11} {choose(scores):g}   of {rates}")


if __name__ == "__main__":
    main()
