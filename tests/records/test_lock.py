from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.errors import RequestError
from peftlab.records.lock import locked

OTHER = """
import sys, pathlib
from peftlab.records.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""


def test_a_second_command_is_told_who_writes_to_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "mine\n"
        message = f"another command writes to .*: process {other.pid} on .* since .*--out DIR"
        with pytest.raises(RequestError, match=message), locked(tmp_path):
            pass
        other.communicate("end\n")
    with locked(tmp_path):  # it has ended
        assert f"process {os.getpid()} " in (tmp_path / ".holder").read_text()
    assert not (tmp_path / ".holder").exists()


def test_a_command_that_was_killed_leaves_the_folder_free(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"mine\n"
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass
