"""The settings that make CUDA repeat its bits, tried without a GPU, and its bits with one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import peftlab
from peftlab.bench import execute, process
from peftlab.methods import METHODS, make
from peftlab.tasks import Task
from peftlab.training import WORKSPACE, repeatable
from tiny import tiny

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(CUBLAS, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


def settings() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get(CUBLAS),
    )


def test_cells_start_with_the_workspace_that_cublas_repeats_its_sums_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert execute.cell_environment()[CUBLAS] == ":4096:8"
    monkeypatch.setenv(CUBLAS, ":16:8")  # whoever sets it keeps it
    assert execute.cell_environment()[CUBLAS] == ":16:8"


@pytest.mark.parametrize(
    ("current", "visible", "seen"),
    [(0, None, None), (0, "3,5", "3,5"), (1, None, "1"), (1, "3,5", "5")],
)
def test_cells_train_on_the_current_device_of_whoever_asks(
    current: int, visible: str | None, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known before they start, such as free memory and precision, is known of that one."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert execute.cell_environment().get("CUDA_VISIBLE_DEVICES") == seen


def test_a_cell_that_trains_on_a_gpu_builds_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "kernels_of", lambda *given: pytest.fail("it asks for them"))
    cell: Any = SimpleNamespace(training=SimpleNamespace(device="cuda", in_engine=True))
    assert process._kernels(tiny(), cell) == "torch"


@pytest.mark.parametrize("warned", [False, True])
def test_on_cuda_torch_is_held_to_the_same_bits_and_then_let_go(warned: bool) -> None:
    if warned:  # a user's own setting is put back, whatever it was
        torch.use_deterministic_algorithms(True, warn_only=True)
    before, tried = settings(), []
    with repeatable("cuda", lambda: tried.append(settings())) as notes:
        assert tried == [settings()] == [(True, False, False, False, ":4096:8")]
        assert notes == []
    assert settings() == before


def test_the_settings_are_restored_after_an_error() -> None:
    before = settings()
    with pytest.raises(ValueError, match="mine"), repeatable("cuda", lambda: None):
        raise ValueError("mine")

    def out_of_memory() -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), repeatable("cuda", out_of_memory):
        pytest.fail("what can't be tried is not begun")
    assert settings() == before


def test_on_a_cpu_nothing_is_set_or_tried() -> None:
    before = settings()
    with repeatable("cpu", lambda: pytest.fail("tried")) as notes:
        assert settings() == before
    assert notes == []


def test_an_operation_that_can_not_repeat_its_bits_is_named_and_run_none_the_less() -> None:
    """`put_` has no deterministic form on any device, so this is torch's own refusal."""
    runs = []

    def trial() -> None:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
        runs.append(settings()[:2])

    with repeatable("cuda", trial) as notes:
        assert runs == [(True, True)]
        assert settings()[:2] == (True, True)
    assert notes == [
        "CUDA may give other bits next time: put_ does not have a deterministic implementation"
    ]


def test_where_cublas_was_used_before_the_note_says_what_to_set() -> None:
    refused = iter([RuntimeError(f"... it uses CuBLAS ... Deterministic ... {CUBLAS}=:4096:8 or")])

    def trial() -> None:
        for error in refused:
            raise error

    with repeatable("cuda", trial) as notes:
        pass
    (note,) = notes
    assert note.endswith(f"set {CUBLAS}={WORKSPACE[CUBLAS]} before Python starts")


def test_a_run_is_inside_and_its_record_has_the_notes(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, where the model's own operations are tried first; here one refuses besides."""
    inside, original = [], process.fit

    def pretended(device: str, trial: object) -> object:
        assert device == "cpu"

        def worse() -> None:
            trial()  # type: ignore[operator]
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

        return repeatable("cuda", worse)

    def fit(*arguments: object) -> object:
        inside.append(torch.are_deterministic_algorithms_enabled())
        return original(*arguments)  # type: ignore[arg-type]

    model, tokenizer = peftlab.load_model(str(tiny_model), precision="fp32")
    plain = peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8)
    monkeypatch.setattr(process, "repeatable", pretended)
    monkeypatch.setattr(process, "fit", fit)
    model, tokenizer = peftlab.load_model(str(tiny_model), precision="fp32")
    record = peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8)
    assert inside == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert [note for note in record.method.notes if "put_" in note]
    assert record.score == plain.score  # trying first has left no trace


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_twice_gives_the_same_bits_on_cuda(
    method: str, tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    precision = make(method).base_precision or "bf16"
    request = {"methods": [method], "epochs": 2, "batch_size": 8, "device": "cuda"}
    found = []
    for out in (tmp_path / "one", tmp_path / "two"):
        (record,) = peftlab.compare(
            model=str(tiny_model), tasks=[tiny_task], out=out, precision=precision, **request
        )
        assert record.status == "done", record.failure
        assert not [note for note in record.method.notes if "bits" in note]
        found.append((out / "predictions" / f"{record.cell}.jsonl").read_text())
    assert found[0] == found[1]
