"""The rates that the protocol's records choose: `python experiments/defaults.py results/defaults`.

The folder has a subfolder of `peftlab compare` for each model. Each method gets the lowest rate
whose mean accuracy, over the tasks of all models, is within one standard error of the best rate's
(Breiman et al. 1984, section 3.4.3): a low rate is safer where a training is longer or a model
larger than here. The rate that each model alone would choose is printed beside it.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from whole import whole

from peftlab.errors import RequestError


class Score(NamedTuple):
    """The accuracy on a task's dev part, which has `n` examples."""

    accuracy: float
    n: int

    @property
    def variance(self) -> float:
        """The variance of the accuracy; k of n counts as (k + 1) / (n + 2), so it is never 0."""
        share = (self.accuracy * self.n + 1) / (self.n + 2)
        return share * (1 - share) / self.n


Place = tuple[str, str]  # a model and a task
Scores = dict[float, dict[Place, Score]]  # by rate


def read(results: Path) -> dict[str, Scores]:
    """By method, the score in each place at each rate; a failed cell has an accuracy of 0."""
    scores: dict[str, Scores] = defaultdict(lambda: defaultdict(dict))
    folders = sorted(path.parent for path in results.glob("*/records"))
    for record in itertools.chain.from_iterable(whole(folder) for folder in folders):
        accuracy = record.score["accuracy"] if record.score else 0.0
        place = (record.model.name, record.task.name)
        score = Score(accuracy, record.task.n_dev)
        scores[record.method.name][record.training["lr"]][place] = score
    return scores


def of_model(scores: Scores, model: str) -> Scores:
    """The scores on the tasks of one model."""
    return {
        rate: {place: score for place, score in places.items() if place[0] == model}
        for rate, places in scores.items()
    }


def mean(scores: dict[Place, Score]) -> float:
    """The mean accuracy over the places."""
    return statistics.fmean(score.accuracy for score in scores.values())


def standard_error(scores: dict[Place, Score]) -> float:
    """The standard error of the mean over the places, from their numbers of dev examples."""
    return math.sqrt(sum(score.variance for score in scores.values())) / len(scores)


def choose(scores: Scores) -> float:
    """The lowest rate whose mean is within one standard error of the best one's.

    Raises:
        RequestError: if a rate lacks a place: its mean would be of other tasks.
    """
    places = set().union(*scores.values())
    for rate, by_place in scores.items():
        if missing := places - by_place.keys():
            names = ", ".join(" ".join(place) for place in sorted(missing))
            raise RequestError(f"no record at the rate {rate:g} of {names}")
    best = max(scores.values(), key=mean)
    return min(rate for rate in scores if mean(scores[rate]) >= mean(best) - standard_error(best))


def main() -> None:
    for method, scores in read(Path(sys.argv[1])).items():
        places = sorted({place for by_place in scores.values() for place in by_place})
        print(f"{method}: {choose(scores):g}")
        for rate, by_place in sorted(scores.items()):
            each = "  ".join(f"{by_place[place].accuracy:.3f}" for place in places)
            print(f"  {rate:<8g} {mean(by_place):.3f} ± {standard_error(by_place):.3f}   of {each}")
        for model in dict(places):
            print(f"  {model} alone: {choose(of_model(scores, model)):g}")
        print("  on " + ", ".join(" ".join(place) for place in places))


if __name__ == "__main__":
    main()
