"""Search for settings: draw points of a space, score each by a short run, train the best longer.

The first ten points are those the caller gives and then a quasi-random sequence (Halton's), the
same for every row; later ones come from Optuna's TPE (Bergstra et al. 2011), which needs ten for
its model. Successive halving (Jamieson and Talwalkar 2016) by three: all trials run a third of the
epochs (or a ninth, as long as that makes 100 updates), and the best third of them all epochs; where
others equal the last of that third, as collapsed runs do, they go on too. Every run is a training
of its own length, with its own schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from peftlab.bench.grid import LEAST_UPDATES
from peftlab.errors import RequestError
from peftlab.methods.base import Range
from peftlab.records.trials import Values

if TYPE_CHECKING:
    import optuna

SAMPLER_SEED = 0
REDUCTION = 3  # of epochs from rung to rung, and of trials
MIN_UPDATES = LEAST_UPDATES // REDUCTION  # of a trial: fewer say nothing about a rate
N_STARTUP = 10  # trials before TPE models them
BORDER = 0.05  # share of a range, on its scale: so near to an end the best may lie beyond it

Space = dict[str, Range]
Merit = Callable[[Values, int], float | None]


class Result(NamedTuple):
    """A point, the epochs that it was trained for, and its merit; None if the training failed."""

    values: Values
    epochs: int
    merit: float | None


def search(
    space: Space, first: list[Values], n_trials: int, merit: Merit, rungs: list[int]
) -> list[Result]:
    """Try `n_trials` points for the epochs of the first rung, and the best of them on the others.

    Args:
        space: the ranges of the settings.
        first: points to begin with; equal ones count once.
        n_trials: the number of points on the first rung.
        merit: trains with some values for so many epochs and returns the merit; None if that fails.
        rungs: epochs, ascending.
    """
    study = _study()
    for point in [*first, *_halton_points(space)][:N_STARTUP]:
        study.enqueue_trial(point, skip_if_exists=True)
    rung = [_run_trial(study, space, merit, rungs[0]) for _ in range(n_trials)]
    results = list(rung)
    for epochs, size in zip(rungs[1:], rung_sizes(n_trials, len(rungs))[1:], strict=True):
        points = [result.values for result in _best(rung, size)]
        rung = [Result(values, epochs, merit(values, epochs)) for values in points]
        results += rung
    return results


def _run_trial(study: optuna.Study, space: Space, merit: Merit, epochs: int) -> Result:
    import optuna

    trial = study.ask(_distributions(space))
    values = {name: _rounded(value, space[name]) for name, value in trial.params.items()}
    value = merit(values, epochs)
    state = optuna.trial.TrialState.FAIL if value is None else None
    study.tell(trial, value, state=state)
    return Result(values, epochs, value)


def rung_sizes(n_trials: int, n_rungs: int) -> list[int]:
    """How many points run on each rung.

    >>> rung_sizes(6, 2), rung_sizes(20, 3), rung_sizes(6, 1)
    ([6, 2], [20, 7, 3], [6])
    """
    return [math.ceil(n_trials / REDUCTION**rung) for rung in range(n_rungs)]


def rungs_of(epochs: int, updates: int) -> list[int]:
    """The epochs of each rung, where an epoch has so many `updates`.

    >>> rungs_of(3, 115), rungs_of(19, 16), rungs_of(30, 200), rungs_of(2, 10)
    ([1, 3], [7, 19], [4, 10, 30], [2])
    """
    rungs = [epochs]
    for rung in (1, 2):
        fewer = math.ceil(epochs / REDUCTION**rung)
        if fewer < rungs[0] and fewer * updates >= MIN_UPDATES:
            rungs.insert(0, fewer)
    return rungs


def best_index(results: list[Result]) -> int | None:
    """The index of the best result among those of the most epochs; None if all failed.

    >>> best_index([Result({"lr": 1.0}, 1, 0.9), Result({"lr": 2.0}, 3, 0.8), Result({}, 3, None)])
    1
    """
    ranked = _ranked(results)
    longest = max((result.epochs for result in ranked), default=0)
    return next((results.index(result) for result in ranked if result.epochs == longest), None)


def _ranked(results: list[Result]) -> list[Result]:
    """The results that did not fail, the best first; equal ones in the order given."""
    done = [result for result in results if result.merit is not None]
    return sorted(done, key=lambda result: -(result.merit or 0.0))


def _best(results: list[Result], size: int) -> list[Result]:
    """The best `size` points, and those that equal the last of them: their order says nothing.

    Whole numbers are drawn again and again; a point takes one place.

    >>> runs = [Result({"rank": rank}, 1, merit) for rank, merit in [(1, 0.0), (2, 0.2), (4, 0.0)]]
    >>> [result.values["rank"] for result in _best([*runs, runs[1]], 2)]
    [2, 1, 4]
    """
    points = {tuple(result.values.items()): result for result in _ranked(results)}
    ranked = list(points.values())
    worst = ranked[:size][-1].merit if ranked else None
    return [*ranked[:size], *(result for result in ranked[size:] if result.merit == worst)]


def at_border(value: float, limits: Range) -> bool:
    """Whether a value lies so near to an end of its range that the best may lie beyond.

    >>> at_border(9.9e-3, Range(1e-4, 1e-2)), at_border(1e-3, Range(1e-4, 1e-2))
    (True, False)
    """
    scale: Callable[[float], float] = math.log if limits.log else float
    low, high, place = map(scale, (limits.low, limits.high, value))
    return not BORDER < (place - low) / (high - low) < 1 - BORDER


def check_optuna() -> None:
    """Raise `RequestError`, with the remedy, where Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise RequestError(
            "tuning needs optuna, which is not installed: pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # our progress shows the trials' scores


def _study() -> optuna.Study:
    import optuna

    sampler = optuna.samplers.TPESampler(seed=SAMPLER_SEED, n_startup_trials=N_STARTUP)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _halton_points(space: Space) -> list[Values]:
    """Points of which the first few, however many, lie evenly in the space."""
    from scipy.stats import qmc  # takes half a second to import, and only a search needs it

    rows = qmc.Halton(len(space), rng=SAMPLER_SEED).random(N_STARTUP)
    return [
        {name: _value_at(place, space[name]) for name, place in zip(space, row, strict=True)}
        for row in rows
    ]


def _value_at(place: float, limits: Range) -> float:
    """The value at a place of a range, from 0 for its low end to 1 for its high end."""
    if not limits.log:
        value = limits.low + place * (limits.high - limits.low)
    else:
        value = limits.low * (limits.high / limits.low) ** place
    return round(value) if limits.whole else value


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution, IntDistribution

    return {
        name: IntDistribution(int(limits.low), int(limits.high), log=limits.log)
        if limits.whole
        else FloatDistribution(limits.low, limits.high, log=limits.log)
        for name, limits in space.items()
    }


def _rounded(value: float, limits: Range) -> float:
    """The value to three digits: they fit into a table, and more would make no difference."""
    return int(value) if limits.whole else float(f"{value:.3g}")
