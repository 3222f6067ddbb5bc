"""Numbers as people read them. One format each, the same in the terminal and on the page."""

from __future__ import annotations

from peftlab.naming import counted
from peftlab.records.rows import COLLAPSED, LOWER_IS_BETTER
from peftlab.report.columns import Column
from peftlab.report.costs import RowCost, describe_differences
from peftlab.report.scores import Table, TableCell, TableRow
from peftlab.report.spread import Span, Spread

MISSING = "–"
WARNING = "!"
PARTIAL_NOTE = "† over fewer tasks than other rows have: compares with none of them."
BASELINES = {
    "constant": "constant always gives the one answer that is best by the metric",
    "majority": "majority always gives train's most frequent class",
    "mean": "mean always gives train's mean",
    "tf-idf": "tf-idf is a linear model on the words alone, fitted in seconds",
}


def fraction(value: float | None) -> str:
    """A score: three digits, no leading zero.

    >>> fraction(0.8612), fraction(-0.012), fraction(1.0), fraction(None)
    ('.861', '−.012', '1.000', '–')
    """
    if value is None:
        return MISSING
    text = f"{abs(value):.3f}"
    text = text[1:] if text.startswith("0.") else text
    return f"−{text}" if value < 0 and text != ".000" else text


def score(value: float | None, column: Column) -> str:
    """A score on the task: a fraction, or an error in the label's unit."""
    return of_metric(value, column.metric)


def of_metric(value: float | None, metric: str) -> str:
    """A value of the metric, or a difference of two.

    >>> of_metric(0.0123, "accuracy"), of_metric(0.0002, "mae"), of_metric(15234.2, "rmse")
    ('.012', '0.000200', '15,234')
    """
    return number(value) if metric in LOWER_IS_BETTER else fraction(value)


def spread(score: Spread, column: Column) -> str:
    """Mean ± sample standard deviation; the mean alone of one seed."""
    if column.lower_is_better:
        return measure(score)
    if score.sd is None:
        return fraction(score.mean)
    return f"{fraction(score.mean)} ± {deviation(score.sd)}"


def interval(around: Spread, cell: TableCell, column: Column) -> str:
    """The 95 % interval `around.mean` ± `around.sd`, and the sd over seeds, as a line."""
    assert around.mean is not None and around.sd is not None
    low, high = (score(around.mean + sign * around.sd, column) for sign in (-1, 1))
    sd = ""
    if cell.last.sd is not None:
        sd = f"; sd over {cell.last.n} seeds {score(cell.last.sd, column)}"
    return f"95 %: {low} to {high}{sd}"


def deviation(sd: float) -> str:
    """A standard deviation; one that would round to 0 is `<.001`, unless it is 0.

    >>> deviation(0.0123), deviation(0.0002), deviation(0.0)
    ('.012', '<.001', '.000')
    """
    return "<.001" if 0 < sd < 0.0005 else fraction(sd)


def number(value: float | None) -> str:
    """Three significant digits, whole from 100 on.

    >>> number(1234.5), number(99.96), number(31.24), number(0.0312), number(-0.0), number(None)
    ('1,234', '100', '31.2', '0.0312', '0', '–')
    """
    if value is None:
        return MISSING
    if abs(value) >= 99.95 or value == 0:  # 99.96 would print as "100."
        return f"{value + 0.0:,.0f}"  # -0.0 would print as "-0"
    return f"{value:#.3g}"


def measure(value: Spread, scale: float = 1.0) -> str:
    """A measurement over seeds, divided by `scale`; the sd has the decimals of the mean.

    >>> measure(Spread(177.2, 2.81, 3)), measure(Spread(154.2, 2.3, 3), 60)
    ('177 ± 3', '2.57 ± 0.04')
    >>> measure(Spread(1.5, None, 1)), measure(Spread(950.0, 0.2, 2))
    ('1.50', '950 ± <1')
    """
    if value.mean is None:
        return MISSING
    mean = number(value.mean / scale)
    if value.sd is None:
        return mean
    if "e" in mean:  # a small number: the sd has three digits of its own
        return f"{mean} ± {number(value.sd / scale)}"
    decimals = len(mean.partition(".")[2])
    sd, unit = value.sd / scale, 10.0**-decimals
    return f"{mean} ± <{unit:.{decimals}f}" if 0 < sd < unit / 2 else f"{mean} ± {sd:,.{decimals}f}"


def minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def count(value: int | None) -> str:
    """A count of parameters, compact.

    >>> count(294_912), count(1_200_000), count(768), count(0), count(None)
    ('295 K', '1.20 M', '768', '0', '–')
    """
    if value is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        # 999,500 would print as 1,000 K
        if value >= size * 0.9995:
            return f"{number(value / size)} {unit}"
    return str(value)


def span(counts: Span) -> str:
    """One count, or the range where tasks differ in it."""
    low, high = count(counts.low), count(counts.high)
    return low if low == high else f"{low}–{high}"


def notes(cell: TableCell, n_seeds: int | None) -> list[str]:
    """Notes beside a score: its number of seeds, unless most have as many; its failures."""
    if cell.n_failed:
        total = cell.n_failed + len(cell.runs)
        return [f"{cell.n_failed} of {total} failed" if total > 1 else "failed"]
    return [f"n = {cell.last.n}"] if cell.last.n not in (0, n_seeds) else []


def collapses(cell: TableCell) -> list[str]:
    """A note on how many of a cell's runs are no better than a constant answer; empty for none."""
    n = sum(n for warning, n in cell.warnings.items() if warning.startswith(COLLAPSED))
    return [f"{n} of {len(cell.runs)} collapsed"] if n else []


def warnings(cell: TableCell) -> list[str]:
    """The warnings of a score, each with the number of seeds it holds for if there are several."""
    n = len(cell.runs)
    return [
        f"{count} of {n} seeds: {warning}" if n > 1 else warning
        for warning, count in cell.warnings.items()
    ]


def describe_warnings(table: Table) -> str:
    """The meaning of a warning's mark, and how many runs collapsed; empty where none is marked."""
    if not any(cell and cell.warnings for row in table.rows for cell in row.cells):
        return ""
    meaning = "marks a score that hides something"
    if not table.n_collapsed:
        return meaning
    return f"{meaning}; {table.n_collapsed} of {table.n_done} finished cells collapsed"


def metric(column: Column) -> str:
    """The main metric, with an arrow where less is better."""
    return f"{column.metric} ↓" if column.lower_is_better else column.metric


def partial_mark(cost: RowCost, n_tasks: int) -> str:
    """The mark of means over fewer tasks than `n_tasks`, the most of any row.

    They compare with no other row.
    """
    return "†" if 0 < cost.n_tasks < n_tasks else ""


def has_partial_means(table: Table) -> bool:
    """Whether a mean in the table has that mark."""
    return any(partial_mark(cost, table.n_tasks) for row in table.rows for cost in row.costs)


def letter(under: int, table: Table) -> str:
    """The letter of the conditions that a cost was measured under; empty if all are alike."""
    if len(table.conditions) < 2:
        return ""
    return chr(ord("a") + under) if under < 26 else str(under + 1)


def describe_conditions(table: Table) -> list[str]:
    """`a: …` for every set of conditions; empty if all are alike."""
    if len(table.conditions) < 2:
        return []
    differences = describe_differences(table.conditions)
    return [f"{letter(under, table)}: {line}" for under, line in enumerate(differences)]


def describe_default_rates(table: Table) -> str:
    """The rows whose learning rate is a default, in one line; empty where none is."""
    untuned = [row.label for row in table.rows if row.default_rate]
    if not untuned:
        return ""
    which = "" if len(untuned) == len(table.rows) else f": {', '.join(untuned)}"
    return f"Learning rates are defaults, not tuned here{which}."


def describe_f1(table: Table) -> str:
    """The class that F1 is for, on each task of two classes that it judges; empty if none."""
    classes = [
        f"{column.labels[1]} ({column.label})" if len(table.columns) > 1 else column.labels[1]
        for column in table.columns
        if column.metric == "f1" and len(column.labels) == 2
    ]
    return f"F1 is that of the class {', '.join(classes)}." if classes else ""


def describe_spread(table: Table) -> str:
    """The meaning of the ± of a score where it is the spread over seeds, and their number."""
    if table.n_seeds is None:
        return "no cell finished"
    if table.n_seeds != 1:
        return f"mean ± sample sd over {table.n_seeds} seeds, where no other n is given"
    if all(cell.last.n <= 1 for row in table.rows for cell in row.cells if cell):
        return "one seed, so no spread can be given"
    return "one seed, where no other n is given; ± sample sd over seeds"


def describe_rounds(table: Table) -> str:
    """The rounds of short cells that speed and memory are from; empty if from the cells."""
    if not table.n_rounds:
        return ""
    source = f"Speed and memory: {counted(table.n_rounds, 'round')} of short cells that took turns"
    busy = "" if table.busy is None else f"; others took at most {table.busy:.1f} of a core"
    exceptions = ""
    if table.out_of_turn:
        exceptions = f" They compare with none of {', '.join(table.out_of_turn)}, measured apart."
    if table.out_of_rounds:
        tasks = ", ".join(table.out_of_rounds)
        exceptions += f" On {tasks} they are of whole cells: means over tasks mix both."
    return f"{source}{busy}. A whole cell may meet wider batches, and hold more.{exceptions}"


def describe_tuning(table: Table) -> list[str]:
    """How trials found the rows' settings, a line for each number of trials and validation part."""
    searches: dict[tuple[str, float], list[str]] = {}
    for row in table.rows:
        if row.tuned and not (row.default_rate and "lr" in row.tuned["space"]):
            up_to = "up to " if row.tuned.get("at_most") else ""  # as many as there was time for
            search = (f"{up_to}{row.tuned['trials']}", row.tuned["validation"])
            settings = (f"{name} {_value(row, name)}" for name in row.tuned["space"])
            searches.setdefault(search, []).append(f"{row.label} ({'; '.join(settings)})")
    return [
        f"Found on each task by {trials} trials a row on {validation:.3g} of train, dev unseen: "
        f"{', '.join(rows)}. Verdicts are on these settings: another search might turn some."
        for (trials, validation), rows in searches.items()
    ]


def _value(row: TableRow, name: str) -> str:
    """A row's value of a setting; a text where trials found one for each task."""
    value = {**row.training, **row.settings}[name]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def baselines(table: Table) -> dict[str, list[str]]:
    """The scores of each baseline, a text for each column."""
    names = dict.fromkeys(name for column in table.columns for name in column.baselines)
    return {
        name: [score(column.baselines.get(name), column) for column in table.columns]
        for name in names
    }


def describe_baselines(table: Table) -> str:
    """What the baselines are, in one line; empty where there are none."""
    described = [BASELINES[name] for name in baselines(table) if name in BASELINES]
    return f"Baselines train nothing of the model: {'; '.join(described)}." if described else ""


def by_rank(table: Table) -> list[tuple[TableRow, Column, TableCell]]:
    """Every cell that has scores with only its first ranks in use (DyLoRA)."""
    return [
        (row, column, cell)
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell and cell.by_rank
    ]


def printable(text: str) -> str:
    """The text without control characters, which a terminal would obey.

    >>> printable("a" + chr(27) + "[31mb")
    'a [31mb'
    """
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)
