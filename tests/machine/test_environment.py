"""What a record says of where its cell ran."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from peftlab.bench.grid import resolve
from peftlab.bench.run import Silent, run_grid
from peftlab.bench.suite import make_suite
from peftlab.layers import nf4
from peftlab.machine.environment import environment
from peftlab.records.record import Record
from peftlab.tasks import Task

INSTALLED = metadata.version("bitsandbytes")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, None),
        ({"OMP_WAIT_POLICY": "passive"}, "passive"),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "7"}, "7"),  # as libgomp decides it
    ],
)
def test_the_spin_count_is_the_one_in_force(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert environment(1).spin_count == found


def test_the_quantiser_is_named_where_there_are_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment(1, "nf4").quantiser == f"bitsandbytes {INSTALLED}"
    assert environment(1, "bf16").quantiser is None
    assert environment(1).packages["bitsandbytes"] == INSTALLED
    monkeypatch.setattr(nf4, "bitsandbytes", lambda: None)
    assert environment(1, "nf4").quantiser == "peftlab"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without(name: str) -> str:
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    assert "bitsandbytes" not in environment(1).packages
    assert environment(1).packages["torch"]


@pytest.fixture(scope="module")
def records(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_task: Task
) -> list[Record]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOMP_SPINCOUNT", "4321")
        suite = make_suite(
            model=str(tiny_model), tasks=[tiny_task], methods=["head", "qlora"], seeds=[0],
            training={"epochs": 1, "batch_size": 16, "accumulation": 3, "parts": False},
        )  # fmt: skip
        return run_grid(resolve(suite), tmp_path_factory.mktemp("runs"), Silent())


def test_a_record_says_what_its_speed_and_numbers_depend_on(records: list[Record]) -> None:
    head = records[0]
    assert [record.failure for record in records] == [None, None]
    assert [record.environment.spin_count for record in records] == ["4321", "4321"]
    assert [record.environment.quantiser for record in records] == [
        None, f"bitsandbytes {INSTALLED}",
    ]  # fmt: skip
    assert [record.parts for record in records] == [3, 3]
    assert head.training["parts"] is False


def test_records_from_before_still_load(records: list[Record]) -> None:
    old = records[0].model_dump(mode="json")
    del old["parts"], old["environment"]["spin_count"], old["environment"]["quantiser"]
    del old["memory"]["by_part"]["rest"], old["training"]["parts"]
    read = Record.model_validate(old)
    assert (read.parts, read.environment.spin_count, read.environment.quantiser) == (None,) * 3
