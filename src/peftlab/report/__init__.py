"""Records -> the score table, the figures and one self-contained page. Imports no torch."""

from peftlab.report.page import build
from peftlab.report.rebuild import Shown, conclude, printed, rebuild
from peftlab.report.scores import Table, table
from peftlab.report.terminal import render_terminal

__all__ = ["Shown", "Table", "build", "conclude", "printed", "rebuild", "render_terminal", "table"]
