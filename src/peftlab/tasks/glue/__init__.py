"""GLUE's tasks: a table of their layouts, and how they are read."""

from peftlab.tasks.glue.read import is_here, load
from peftlab.tasks.glue.table import GLUE, Glue

__all__ = ["GLUE", "Glue", "is_here", "load"]
