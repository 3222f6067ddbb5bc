"""A user's own file: read as a task, or read and written again with answers."""

from peftlab.tasks.files.answers import Sheet, answer_file, check_out, read_sheet
from peftlab.tasks.files.file import load
from peftlab.tasks.files.rows import NoColumn

__all__ = ["NoColumn", "Sheet", "answer_file", "check_out", "load", "read_sheet"]
