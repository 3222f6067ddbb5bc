"""A comparison goes on from what was kept of it, and ends as if it had never stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unfinished import keep, resume
from whole import whole

import peftlab
from peftlab.errors import RequestError
from peftlab.records.record import Failure, Record
from peftlab.records.store import Store, lines_of, rows_of
from peftlab.records.trials import read_trials
from peftlab.records.verdicts import compare_rows
from peftlab.tasks import Task


def interrupted_at(column: str) -> Callable[[list[dict[str, Any]]], str]:
    """`lines_of`, but Ctrl-C comes at the first file that has this column."""

    def stop(rows: list[dict[str, Any]]) -> str:
        if column in rows[0]:
            raise KeyboardInterrupt
        return lines_of(rows)

    return stop


@pytest.mark.usefixtures("warm")
def test_what_was_kept_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_task: Task
) -> None:
    def compare(out: Path) -> dict[str, Record]:
        request: dict[str, Any] = {"model": tiny_model, "tasks": tiny_task, "epochs": 1, "tune": 2}
        peftlab.compare(methods=["head", "bitfit"], seeds=[0, 1, 2], out=out, quiet=True, **request)
        return {record.cell: record for record in whole(out)}

    out, kept, other = tmp_path / "out", tmp_path / "kept", tmp_path / "other"
    first = compare(out)
    lost, *rest = first
    (out / "records" / f"{lost}.json").rename(tmp_path / "lost")
    failure = Failure(kind="ProcessDied", message="killed")
    failed = first[lost].model_copy(update={"status": "failed", "failure": failure, "score": None})
    Store(out).write_record(failed)
    keep(out, kept)
    rows = [row for file in kept.rglob("*.jsonl") for row in rows_of(file)]
    assert len([row for row in rows if "prediction" in row]) == 5 * len(tiny_task.dev)
    assert not any("label" in row for row in rows)
    assert {file.suffix for file in kept.rglob("*") if file.is_file()} == {".json", ".jsonl"}

    monkeypatch.setattr("unfinished.load", lambda name: tiny_task)
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr("unfinished.lines_of", interrupted_at("prediction"))
        resume(kept, tmp_path / "stopped")
    assert not Store(tmp_path / "stopped").cells()  # a cell with a record is done
    resume(kept, other)
    again = compare(other)
    assert all(again[cell] == first[cell] for cell in rest)
    assert again[lost] != first[lost] and again[lost].score == first[lost].score
    trials = [whole(folder / "tuning") for folder in (out, other)]
    assert len(trials[0]) == 4 and trials[0] == trials[1]  # to the second, so none was run again
    assert read_trials(other / "tuning") == read_trials(out / "tuning")
    (tmp_path / "lost").rename(out / "records" / f"{lost}.json")
    pairs = [compare_rows(whole(folder), [folder]).pairs for folder in (out, other)]
    assert pairs[0] and pairs[0] == pairs[1]

    changed = dataclasses.replace(tiny_task, dev=tiny_task.train)
    monkeypatch.setattr("unfinished.load", lambda name: changed)
    with pytest.raises(RequestError, match="tiny: its data"):
        resume(kept, tmp_path / "third")
