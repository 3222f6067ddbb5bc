"""The list of tasks, loading by name, and what importing the room costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from peftlab import tasks
from peftlab.errors import RequestError
from peftlab.tasks.metrics import METRICS


def test_every_task_is_described():
    rows = tasks.listing()
    assert [row.name for row in rows] == tasks.names()
    for row in rows:
        assert row.summary and len(row.summary) < 80
        assert row.kind in {"classes", "regression"}
        assert row.metrics and set(row.metrics) <= set(METRICS)
        assert row.source in {"synthetic, built in", "GLUE"}
        correlated = {"pearson", "spearman"} & set(row.metrics)
        assert bool(correlated) == (row.kind == "regression")


def test_no_two_tasks_share_a_name():
    assert len(set(tasks.names())) == len(tasks.names())


def test_glue_is_complete():
    glue = {row.name for row in tasks.listing() if row.source == "GLUE"}
    assert glue == {"cola", "mrpc", "rte", "stsb", "sst2", "qnli", "qqp", "mnli", "wnli"}


def test_a_built_in_task_is_always_here(tmp_path):
    for row in tasks.listing():
        assert row.is_here(tmp_path) == (row.source == "synthetic, built in")


def test_glue_is_here_when_both_files_are(tmp_path):
    row = next(row for row in tasks.listing() if row.name == "mnli")
    (tmp_path / "MNLI").mkdir()
    for name, here in (("train.tsv", False), ("dev.tsv", False), ("dev_matched.tsv", True)):
        (tmp_path / "MNLI" / name).touch()
        assert row.is_here(tmp_path) is here


def test_a_built_in_task_loads_by_name_whatever_the_data_folder(tmp_path):
    for name in tasks.built_in():
        task = tasks.load(name, tmp_path)
        assert (task.name, task.source) == (name, "synthetic")


def test_an_unknown_task_gets_the_nearest_name_and_the_way_to_a_file():
    with pytest.raises(RequestError, match=r"unknown task 'mrcp'; did you mean 'mrpc'\? Allowed: "):
        tasks.load("mrcp")
    with pytest.raises(RequestError, match="--data"):
        tasks.load("../../etc/passwd")


def test_the_room_opens_without_heavy_libraries():
    code = (
        "import sys; from peftlab import tasks; tasks.listing()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'sklearn', 'scipy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_environment_names_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLAB_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match="nowhere"):
        tasks.load("mrpc")
    with pytest.raises(RequestError, match="elsewhere"):  # what is given wins
        tasks.load("mrpc", tmp_path / "elsewhere")
