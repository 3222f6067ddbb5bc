"""Numbers as people read them. One format each, the same in the terminal and on the page."""

from __future__ import annotations

import re

from peftlab.report.scores import Cell, Row, Span, Spread

MISSING = "–"


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


def spread(score: Spread) -> str:
    """Mean ± sample standard deviation; the mean alone where there is one seed."""
    if score.sd is None:
        return fraction(score.mean)
    return f"{fraction(score.mean)} ± {deviation(score.sd)}"


def deviation(sd: float) -> str:
    """A standard deviation; one that rounds to nothing is still not nothing.

    >>> deviation(0.0123), deviation(0.0002), deviation(0.0)
    ('.012', '<.001', '.000')
    """
    return "<.001" if 0 < sd < 0.0005 else fraction(sd)


def number(value: float | None) -> str:
    """Three significant digits, whole from 100 on.

    >>> number(1234.5), number(31.24), number(0.0312), number(0.0), number(None)
    ('1,234', '31.2', '0.0312', '0', '–')
    """
    if value is None:
        return MISSING
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
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


def notes(cell: Cell, n_seeds: int | None) -> list[str]:
    """What must stand beside a score: its seeds, unless as many as most have; its failures."""
    if cell.n_failed:
        total = cell.n_failed + len(cell.runs)
        return [f"{cell.n_failed} of {total} failed" if total > 1 else "failed"]
    return [f"n = {cell.last.n}"] if cell.last.n not in (0, n_seeds) else []


def partial(row: Row, n_columns: int) -> str:
    """A mark on means over tasks of a row that lacks some task: they compare with no other row."""
    return "†" if 0 < row.n_tasks < n_columns else ""


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey.

    >>> printable("a" + chr(27) + "[31mb")
    'a [31mb'
    """
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def slug(text: str) -> str:
    """A safe part of a file name.

    >>> slug("../Über <b>"), slug("///")
    ('ber-b', 'x')
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "x"
