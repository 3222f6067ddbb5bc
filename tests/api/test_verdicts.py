"""The verdicts of a folder, of several, and of records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import peftlab
from peftlab.records.store import Store

RECORDS = Path(__file__).parents[2] / "results" / "batches" / "random"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Committed records, which have no predictions beside them."""
    shutil.copytree(RECORDS / "records", tmp_path / "out" / "records")
    return tmp_path / "out"


def test_committed_records_have_differences_and_no_verdict(folder: Path) -> None:
    comparison = peftlab.verdicts(folder)
    assert {pair.task for pair in comparison.pairs} >= {"acceptability", "similarity"}
    assert {pair.verdict for pair in comparison.pairs} == {"unclear: no predictions"}
    assert all(pair.difference is not None and pair.low is None for pair in comparison.pairs)
    assert {row.n_tasks for row in comparison.over_tasks} == {7}
    assert comparison.recommendation is not None
    json.dumps(comparison.model_dump())


def test_records_and_several_folders_are_the_same_comparison(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "other" / "records"
    moved.mkdir(parents=True)
    for file in (folder / "records").glob("*lora*"):
        file.rename(moved / file.name)
    whole = peftlab.verdicts(RECORDS)
    parts = peftlab.verdicts([folder, tmp_path / "other"])
    assert {frozenset((pair.task, pair.a, pair.b)) for pair in parts.pairs} == {
        frozenset((pair.task, pair.a, pair.b)) for pair in whole.pairs
    }
    assert peftlab.verdicts(Store(RECORDS).records()) == whole


def test_what_can_t_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(peftlab.RequestError, match="margin must be at least 0 and finite, got -1"):
        peftlab.verdicts(folder, margin=-1)
    with pytest.raises(peftlab.RequestError, match="margin must be a number, got '1'"):
        peftlab.verdicts(folder, margin="1")  # type: ignore[arg-type]
    with pytest.raises(peftlab.RequestError, match="no records"):
        peftlab.verdicts(tmp_path)
    with pytest.raises(peftlab.RequestError, match=f"{Path.home()}/none has no records"):
        peftlab.verdicts("~/none")
    with pytest.raises(peftlab.RequestError, match="give folders or records, not both"):
        peftlab.verdicts([folder, *Store(folder).records()])  # type: ignore[list-item]
    with pytest.raises(peftlab.RequestError, match=r"nosuch has no predictions; give the output"):
        peftlab.verdicts(Store(folder).records(), folder=tmp_path / "nosuch")
    with pytest.raises(peftlab.RequestError, match="folder= is for records"):
        peftlab.verdicts(folder, folder=folder)
    with pytest.raises(peftlab.RequestError, match="nothing to compare"):
        peftlab.verdicts([])
