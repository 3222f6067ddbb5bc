"""Records -> the score table, the figures and one self-contained page. Imports no torch.

scores.py, columns.py, costs.py, spread.py            the table, as numbers
text.py, standing.py, advice.py                       numbers, marks and advice in words
figures.py                                            every figure that the table allows:
  lines, bars, front, ranks, rates, second              one file a kind
  curves, style, panels, vega                           their data, looks, and drawing
page.py, runs.py, confusion.py, disagreements.py,
command.py                                            the page and its parts
terminal.py, papers.py, published.py, watching.py     the other forms of the table
rebuild.py                                            all of it for a folder
"""

from peftlab.report.page import build
from peftlab.report.rebuild import Shown, conclude, format_table, rebuild
from peftlab.report.scores import Table, table
from peftlab.report.terminal import render_terminal

__all__ = [
    "Shown",
    "Table",
    "build",
    "conclude",
    "format_table",
    "rebuild",
    "render_terminal",
    "table",
]
