"""What a comparison ends with: the page of its whole folder, the table of what was asked for."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from peftlab.records.store import Store
from peftlab.records.verdicts import compare_rows
from peftlab.report import conclude
from peftlab.report.rebuild import format_table


def text_of(shown):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(shown.terminal)
    return console.file.getvalue()


@pytest.fixture
def folder(tmp_path, record):
    """An earlier comparison on one task, and a later one on another with a row less."""
    store = Store(tmp_path)
    for asked in (["lora", "full"], "mrpc"), (["lora"], "cola"):
        rows, task = asked
        records = [record(row, task, seed) for row in rows for seed in (0, 1)]
        for one in records:
            store.write_record(one)
        cells = [{"cell": one.cell, "label": one.method.label} for one in records]
        store.write_suite({"name": task, "cells": cells})
    return tmp_path


def test_another_task_of_the_folder_is_named_and_in_the_page_alone(folder):
    shown = conclude(folder, Store(folder).records(last=True))
    assert "cola" in text_of(shown) and "mrpc" not in text_of(shown)
    assert shown.beside == (
        f"{folder} also holds mrpc (4 cells of an earlier comparison), which the page shows too; "
        f"peftlab report {folder} --last shows this one alone"
    )
    page = shown.page.read_text(encoding="utf-8")
    assert "mrpc" in page and "cola" in page


def test_rows_of_an_earlier_comparison_on_the_same_examples_stay(folder):
    mrpc = [one for one in Store(folder).records() if one.task.name == "mrpc"]
    lora = [one for one in mrpc if one.method.name == "lora"]
    shown = conclude(folder, lora)
    assert "full" in text_of(shown) and "also holds cola (2 cells" in shown.beside


def test_edited_data_and_another_metric_are_told_from_what_was_asked(folder):
    for one in Store(folder).records():
        if one.task.name == "cola":
            (folder / "records" / f"{one.cell}.json").unlink()
            continue
        changes = {"sha256": "0" * 64} if one.method.name == "lora" else {"main_metric": "accuracy"}
        changed = one.model_copy(
            update={
                "task": one.task.model_copy(update=changes),
                "score": {"accuracy": 0.5, "f1": 0.5},
                "cell": f"{one.cell}-changed",
            }
        )
        Store(folder).write_record(changed)
    asked = [one for one in Store(folder).records() if not one.cell.endswith("changed")]
    beside = conclude(folder, asked).beside
    assert (
        "mrpc with other examples (2 cells of" in beside and "mrpc by accuracy (2 cells" in beside
    )


def test_where_there_is_nothing_else_nothing_is_said(folder):
    assert conclude(folder, Store(folder).records()).beside == ""


def test_rows_that_are_left_out_are_still_corrected_for(folder, monkeypatch):
    """The best and the worst of fifteen equal rows were told apart in every third comparison."""
    seen = []

    def watched(records, folders, question, beside):
        seen.append([(one.method.name, one.task.name) for one in beside])
        return compare_rows(records, folders, question, beside)

    monkeypatch.setitem(format_table.__globals__, "compare_rows", watched)
    format_table(folder, "csv", methods=["full"])
    format_table(folder, "csv", tasks=["mrpc"])
    format_table(folder, "csv", tasks=["cola"], last=True)
    assert seen == [[("lora", "mrpc")] * 2, [], []]
