"""The folder of a suite: made, locked, cleaned, read, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from peftlab.errors import RequestError
from peftlab.records.lock import locked
from peftlab.records.record import Environment, Record
from peftlab.records.store import Store, select


def test_what_was_called_attention_is_read_as_kernels_and_written_so() -> None:
    """Records of before 2026-11-27 have one of the engine's kernels alone."""
    known = {"commit": None, "dirty": None, "python": "3", "packages": {}, "gpu": None}
    known |= {"processor": "x", "threads": 1, "attention": "sentences.cpp"}
    read = Environment.model_validate(known)
    assert read.kernels == read.model_dump()["kernels"] == "sentences.cpp"
    assert Environment.model_validate_json(read.model_dump_json()) == read


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b").prepare()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_our_own_folder_is_taken_and_half_written_files_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_json("suite.json", {})
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / ".4711.tmp").write_text("{")
    (tmp_path / "records" / ".gitkeep").write_text("")
    (tmp_path / ".4712.tmp").write_text("{")  # of .now.json, which is written every two seconds
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / ".4713.tmp").write_text("")  # `peftlab report` may be writing it
    store.prepare()
    store.clean()
    assert not (tmp_path / ".4712.tmp").exists() and (tmp_path / "report" / ".4713.tmp").exists()
    assert [path.name for path in (tmp_path / "records").iterdir()] == [".gitkeep"]


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match=r"not peftlab's \(thesis\.tex\); give a new"):
        Store(tmp_path).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_folders_are_not_ours_and_their_files_stay(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.tmp").write_text("precious")
    with pytest.raises(RequestError, match=r"not peftlab's \(\.cache\)"):
        Store(tmp_path).prepare()
    assert (tmp_path / ".cache" / "x.tmp").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RequestError, match="is a file; give a folder"):
        Store(tmp_path / "out").prepare()


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is not writable: Not a directory"):
        Store(tmp_path / "file" / "out").prepare()
    with pytest.raises(RequestError, match="is not writable"):
        Store(Path("/proc/peftlab")).prepare()
    Store(tmp_path / "ours").prepare()
    (tmp_path / "ours" / "curves").symlink_to("/proc")  # made by another user, as in a container
    with pytest.raises(RequestError, match=r"ours is not writable: .*curves"):
        Store(tmp_path / "ours").prepare()


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 5 * 2**20))
    with pytest.raises(RequestError, match="5 MiB of free disk space and 200 MiB are needed"):
        Store(tmp_path).prepare()


def test_a_folder_without_records_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no records"):
        Store(tmp_path).records()


def test_a_folder_that_has_come_to_its_trials_says_so(tmp_path: Path) -> None:
    (tmp_path / "tuning" / "records").mkdir(parents=True)
    (tmp_path / "tuning" / "records" / "one.json").write_text("{}")
    with pytest.raises(RequestError, match=r"but those of 1 trial, .*; `peftlab watch .* follows"):
        Store(tmp_path).records()


def test_an_unreadable_record_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json").write_text("{}")
    assert Store(tmp_path).read("x") is None
    assert Store(tmp_path).read("y") is None


def fill(store: Store, *cells: tuple[str, str, str]) -> None:
    """Records of (cell, task, method)."""
    (store.out / "records").mkdir(exist_ok=True)
    environment = {"commit": None, "dirty": None, "python": "3", "packages": {}, "processor": "x"}
    for cell, task, method in cells:
        store.write_record(
            Record.model_validate(
                {
                    "cell": cell,
                    "suite": "x",
                    "model": {"name": "m", "revision": None, "sha256": None},
                    "task": {
                        "name": task,
                        "kind": "classes",
                        "main_metric": "f1",
                        "source": "python",
                        "n_train": 1,
                        "n_dev": 1,
                        "n_truncated": None,
                        "sha256": task,
                    },
                    "method": {
                        "name": method,
                        "label": method,
                        "settings": {},
                        "targets": [],
                        "notes": [],
                    },
                    "training": {},
                    "precision": "fp32",
                    "seed": 0,
                    "status": "done",
                    "environment": environment | {"gpu": None, "threads": 1},
                }
            )
        )


def ask(store: Store, name: str, **labels: str) -> None:
    """Write the suite that asked for these cells under these labels."""
    cells = [{"cell": cell, "label": label} for cell, label in labels.items()]
    store.write_suite({"name": name, "tasks": [], "cells": cells})


def shown(store: Store, last: bool = False) -> list[tuple[str, str]]:
    return [(record.cell, record.method.label) for record in store.records(last)]


def test_a_subset_asked_again_leaves_all_records_in_their_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, ("b", "t", "head"), ("a", "t", "lora"), ("c", "t", "dora"))
    ask(store, "first", b="head", a="LoRA", c="dora")
    ask(store, "again", a="LoRA")
    assert shown(store) == [("b", "head"), ("a", "LoRA"), ("c", "dora")]
    assert shown(store, last=True) == [("a", "LoRA")]
    assert store.title(store.records()) == "again"


def test_labels_of_earlier_suites_survive_and_a_new_one_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, ("a", "t", "lora"), ("b", "t", "lora"), ("c", "t", "dora"))
    ask(store, "first", a="rank 8", b="rank 16")
    ask(store, "second", b="large")
    ask(store, "third", c="mine")
    assert shown(store) == [("a", "rank 8"), ("b", "large"), ("c", "mine")]


def test_of_a_row_what_was_asked_for_last_comes_last(tmp_path: Path) -> None:
    """A search that found another rate, and then the first one's again: the latter is current."""
    store = Store(tmp_path)
    fill(store, ("a", "t", "lora"), ("b", "t", "lora"), ("c", "t", "head"))
    ask(store, "first", a="lora", c="head")
    ask(store, "second", b="lora")
    assert [cell for cell, _ in shown(store)] == ["a", "c", "b"]
    ask(store, "first again", a="lora")
    assert [cell for cell, _ in shown(store)] == ["b", "c", "a"]


def test_records_that_no_suite_is_known_of_are_shown_last(tmp_path: Path) -> None:
    """A folder of an older version: its suite.json kept the last suite alone."""
    store = Store(tmp_path)
    fill(store, ("a", "t", "lora"), ("z", "t", "head"))
    store.write_json("suite.json", {"name": "x", "cells": [{"cell": "z", "label": "Head"}]})
    assert shown(store) == [("z", "Head"), ("a", "lora")]
    (tmp_path / "suite.json").unlink()
    assert shown(store, last=True) == [("a", "lora"), ("z", "head")]


def test_a_suite_that_covers_earlier_ones_takes_their_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for labels in ({"a": "x"}, {"b": "y"}, {"a": "x"}, {"a": "x", "b": "y"}):
        ask(store, "s", **labels)
    (suite,) = store.suites()
    assert suite["cells"] == [{"cell": "a", "label": "x"}, {"cell": "b", "label": "y"}]


def test_a_damaged_suite_is_said_to_be_and_written_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for text in ("{", "[]", '{"cells": [1]}', '{"name": "x"}'):
        (tmp_path / "suite.json").write_text(text)
        with pytest.raises(RequestError, match="is damaged"):
            store.records()
        ask(store, "s", a="x")
        assert [one["name"] for one in store.suites()] == ["s"]


def test_less_is_shown_if_asked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, ("a", "t", "lora"), ("b", "u", "lora"), ("c", "t", "head"))
    ask(store, "s", a="r8", b="r16", c="head")
    records = store.records()

    def cells(tasks: list[str] | None, methods: list[str] | None) -> list[str]:
        return [record.cell for record in select(records, tasks, methods)]

    assert cells(None, None) == ["a", "b", "c"]
    assert cells(["t"], None) == ["a", "c"]
    assert cells(None, ["lora"]) == ["a", "b"]
    assert cells(["t", "u"], ["r16", "head"]) == ["b", "c"]
    with pytest.raises(RequestError, match="unknown method 'lroa'; did you mean 'lora'"):
        select(records, None, ["lroa"])
    with pytest.raises(RequestError, match="unknown task 'v'"):
        select(records, ["v"], None)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write_json("suite.json", {"cells": []})
    before = (tmp_path / "suite.json").read_text()

    def full(self: Path, *arguments: object, **named: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_json("suite.json", {"cells": ["new"]})
    assert (tmp_path / "suite.json").read_text() == before


def test_a_record_that_can_not_be_read_is_named_and_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    records = tmp_path / "records"
    records.mkdir()
    for content in ("first", "second"):
        (records / "a-s0-12345678.json").write_text(content)
        assert store.unreadable() == ["a-s0-12345678"]
        store.set_aside("a-s0-12345678")
        assert store.unreadable() == []
    kept = {path.name: path.read_text() for path in records.iterdir()}
    assert kept == {
        "a-s0-12345678.json.unreadable": "first",
        "a-s0-12345678.json.unreadable1": "second",
    }


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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file's existence is the lock, it outlives a command that is killed."""

    def flock(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(RequestError, match=f"can't lock files .{os.strerror(number)}"):
        locked(tmp_path).__enter__()


def test_a_lock_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr("peftlab.records.lock.FileLock", refused)
    with pytest.raises(RequestError, match=r"\.lock belongs to another user.* delete it"):
        locked(tmp_path).__enter__()


def test_a_record_of_another_cell_is_none_of_ours(folder: Any) -> None:
    """What it calls its cell becomes a path: somebody else's folder could name any file here."""
    record = folder.add("lora", 0)
    store = Store(folder.path)
    there = folder.path / "records" / f"{record.cell}.json"
    for name in ("another", "../../victim"):
        there.write_text(there.read_text().replace(record.cell, name))
        assert store.read(record.cell) is None
        there.write_text(there.read_text().replace(name, record.cell))
    assert store.read(record.cell) == record
    with pytest.raises(ValidationError):
        Record.model_validate(record.model_dump() | {"cell": "../../victim"})


def test_a_folder_that_is_locked_here_is_so_once_and_to_the_outer_end(tmp_path: Path) -> None:
    refused: list[str] = []

    def from_another_thread() -> None:
        try:
            with locked(tmp_path):
                pass
        except RequestError as error:
            refused.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path):
            assert (tmp_path / ".holder").exists()
        thread = threading.Thread(target=from_another_thread)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "another command writes to" in refused[0]
    with locked(tmp_path):
        pass


def test_what_somebody_puts_beside_a_comparison_does_not_stop_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    store.write_json("suite.json", {"cells": []})
    store.prepare()
    (tmp_path / "best").mkdir()
    (tmp_path / "notes.md").write_text("mine")
    store.prepare()
    store.clean()
    assert (tmp_path / "notes.md").read_text() == "mine"
    (tmp_path / "suite.json").write_text('{"my": "tests"}')  # somebody's own
    with pytest.raises(RequestError, match="files that are not peftlab's"):
        store.prepare()


def test_adapters_that_a_killed_command_left_half_written_go(tmp_path: Path) -> None:
    """Each is as large as the model, in full fine-tuning."""
    for name in (".4711.tmp", ".4711.old", "cell"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_model.safetensors").write_text("")
    Store(tmp_path).clean()
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["cell"]
