"""A user's own file: read it as a task, or read it and write it again with answers."""

from peftlab.tasks.files.answers import Sheet, answer_file, check_out, read_sheet
from peftlab.tasks.files.file import load
from peftlab.tasks.files.rows import NoColumn

__all__ = ["NoColumn", "Sheet", "answer_file", "check_out", "load", "read_sheet"]
