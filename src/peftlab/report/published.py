"""Our scores beside published ones, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from peftlab.records.published import PublishedComparison
from peftlab.report.text import MISSING, printable

HEAD = ("published", "ours", "ours - published\nand 95 %")


def draw(rows: Sequence[PublishedComparison]) -> Table:
    """The table; scores as fractions, signs on differences."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    view.add_column("task", overflow="fold")
    view.add_column("row", overflow="fold")
    for header in HEAD:
        view.add_column(header, justify="right", no_wrap=True)
    view.add_column("ours is", overflow="fold")
    for row in rows:
        view.add_row(*map(Text, cells(row)))
    return view


def cells(row: PublishedComparison) -> list[str]:
    """The texts of a row of the table; an interval stands below its difference."""
    task = printable(f"{row.task}\n{row.metric}")
    return [task, printable(row.row), f"{row.published:.3f}", *_ours(row), row.says]


def _ours(row: PublishedComparison) -> list[str]:
    if row.mean is None or row.difference is None:
        return [MISSING] * 2
    spread = f" ± {row.sd:.3f}" if row.sd is not None else ""
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"\n{row.low:+.3f} .. {row.high:+.3f}"
    return [f"{row.mean:.3f}{spread}", f"{row.difference:+.3f}{interval}"]
