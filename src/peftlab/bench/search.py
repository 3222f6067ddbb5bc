"""Search for settings: draw points of a space, score each by a short run, train the best longer.

The first ten points are given ones and a quasi-random sequence (Halton's), the same for every row;
those after it come from Optuna's TPE (Bergstra et al. 2011), which needs that many for its model.
Successive halving (Jamieson and Talwalkar 2016) by three: all trials run a third of the epochs (or
a ninth, as long as that makes 100 updates), and the best third of them all epochs; where the last
of that third has equals, as runs that collapsed are, they go on too. Each of those is a training of
its own length, with its own schedule.
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
SHORTEST = LEAST_UPDATES // REDUCTION  # updates of a trial: fewer say nothing of a rate
MODELLED = 10  # trials that TPE wants to see before it models them
BORDER = 0.05  # of a range, on its scale: what is found so near to its end may lie beyond it

Space = dict[str, Range]
Merit = Callable[[Values, int], float | None]


class Tried(NamedTuple):
    """A point, the epochs that it was trained for, and its merit; None where that failed."""

    values: Values
    epochs: int
    merit: float | None


def search(
    space: Space, first: list[Values], n_trials: int, merit: Merit, rungs: list[int]
) -> list[Tried]:
    """Try `n_trials` points for the epochs of the first rung, and the best of them on the others.

    Args:
        space: where to look.
        first: points to begin with; equal ones count once.
        n_trials: of the first rung.
        merit: of a training with some values and so many epochs; None if it fails.
        rungs: epochs, ascending.
    """
    study = _study()
    for point in [*first, *_spread(space)][:MODELLED]:
        study.enqueue_trial(point, skip_if_exists=True)
    on_rung = [_try(study, space, merit, rungs[0]) for _ in range(n_trials)]
    tried = list(on_rung)
    for epochs, size in zip(rungs[1:], rung_sizes(n_trials, len(rungs))[1:], strict=True):
        best = _best(on_rung, size)
        on_rung = [Tried(one.values, epochs, merit(one.values, epochs)) for one in best]
        tried += on_rung
    return tried


def _try(study: optuna.Study, space: Space, merit: Merit, epochs: int) -> Tried:
    import optuna

    trial = study.ask(_distributions(space))
    values = {name: _rounded(value, space[name]) for name, value in trial.params.items()}
    found = merit(values, epochs)
    failed = optuna.trial.TrialState.FAIL if found is None else None
    study.tell(trial, found, state=failed)
    return Tried(values, epochs, found)


def rung_sizes(n_trials: int, n_rungs: int) -> list[int]:
    """How many points run on each rung.

    >>> rung_sizes(6, 2), rung_sizes(20, 3), rung_sizes(6, 1)
    ([6, 2], [20, 7, 3], [6])
    """
    return [math.ceil(n_trials / REDUCTION**rung) for rung in range(n_rungs)]


def rungs_of(epochs: int, updates: int) -> list[int]:
    """The epochs of each rung, with so many updates an epoch.

    >>> rungs_of(3, 115), rungs_of(19, 16), rungs_of(30, 200), rungs_of(2, 10)
    ([1, 3], [7, 19], [4, 10, 30], [2])
    """
    rungs = [epochs]
    for rung in (1, 2):
        fewer = math.ceil(epochs / REDUCTION**rung)
        if fewer < rungs[0] and fewer * updates >= SHORTEST:
            rungs.insert(0, fewer)
    return rungs


def chosen(tried: list[Tried]) -> int | None:
    """The position of the best of those that ran the most epochs; None if all failed.

    >>> chosen([Tried({"lr": 1.0}, 1, 0.9), Tried({"lr": 2.0}, 3, 0.8), Tried({}, 3, None)])
    1
    """
    done = _ranked(tried)
    longest = max((one.epochs for one in done), default=0)
    return next((tried.index(one) for one in done if one.epochs == longest), None)


def _ranked(tried: list[Tried]) -> list[Tried]:
    """Those that did not fail, the best first; of equals, the first."""
    done = [one for one in tried if one.merit is not None]
    return sorted(done, key=lambda one: -(one.merit or 0.0))


def _best(tried: list[Tried], size: int) -> list[Tried]:
    """The best `size` and the equals of the last of them: which came first says nothing.

    >>> [one.merit for one in _best([Tried({}, 1, merit) for merit in (0.0, 0.2, 0.0)], 2)]
    [0.2, 0.0, 0.0]
    """
    ranked = _ranked(tried)
    worst = ranked[:size][-1].merit if ranked else None
    return [*ranked[:size], *(one for one in ranked[size:] if one.merit == worst)]


def at_border(value: float, where: Range) -> bool:
    """Whether a value lies so near to an end of its range that the best may lie beyond.

    >>> at_border(9.9e-3, Range(1e-4, 1e-2)), at_border(1e-3, Range(1e-4, 1e-2))
    (True, False)
    """
    scale: Callable[[float], float] = math.log if where.log else float
    low, high, at = map(scale, (where.low, where.high, value))
    return not BORDER < (at - low) / (high - low) < 1 - BORDER


def check_optuna() -> None:
    """Raise RequestError, with the remedy, where Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise RequestError(
            "tuning needs optuna, which is not installed: pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # progress says what a trial came to


def _study() -> optuna.Study:
    import optuna

    sampler = optuna.samplers.TPESampler(seed=SAMPLER_SEED, n_startup_trials=MODELLED)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _spread(space: Space) -> list[Values]:
    """Points that lie evenly in the space, whichever of them come first."""
    from scipy.stats import qmc  # half a second that only a search needs

    places = qmc.Halton(len(space), rng=SAMPLER_SEED).random(MODELLED)
    return [
        {name: _at(place, where) for place, (name, where) in zip(row, space.items(), strict=True)}
        for row in places
    ]


def _at(place: float, where: Range) -> float:
    """What lies at a place between 0 and 1 of a range."""
    if not where.log:
        value = where.low + place * (where.high - where.low)
    else:
        value = where.low * (where.high / where.low) ** place
    return round(value) if where.whole else value


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution, IntDistribution

    return {
        name: IntDistribution(int(where.low), int(where.high), log=where.log)
        if where.whole
        else FloatDistribution(where.low, where.high, log=where.log)
        for name, where in space.items()
    }


def _rounded(value: float, where: Range) -> float:
    """Of three digits: a table shows it, and nobody can tell a finer one from it."""
    return int(value) if where.whole else float(f"{value:.3g}")
