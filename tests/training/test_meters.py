from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from peftlab.layers import LoRALinear
from peftlab.training import meters
from peftlab.training.meters import WARMUP_STEPS, MemoryMeter, SpeedMeter

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_speed_leaves_the_first_steps_out() -> None:
    meter = SpeedMeter()
    for seconds in [9.0] * WARMUP_STEPS + [0.1, 0.2, 0.3, 0.4]:
        meter.add(seconds, examples=8, tokens=80)
    summary = meter.summary()
    assert summary["examples_per_s"] == pytest.approx(32)
    assert summary["tokens_per_s"] == pytest.approx(320)
    assert summary["step_ms_p50"] == pytest.approx(1000 * statistics.median([0.1, 0.2, 0.3, 0.4]))


def test_p95_is_what_one_step_in_twenty_is_longer_than() -> None:
    meter = SpeedMeter()
    for index in range(WARMUP_STEPS + 99):
        meter.add((index - WARMUP_STEPS + 1) / 100 if index >= WARMUP_STEPS else 9.0, 8, 80)
    assert meter.summary()["step_ms_p95"] == pytest.approx(941)
    few = SpeedMeter()
    for seconds in (9.0,) * WARMUP_STEPS + (1.0, 2.0):
        few.add(seconds, 8, 80)
    assert few.summary()["step_ms_p95"] == pytest.approx(1950)  # no more than the longest


def test_a_run_too_short_to_time_is_not_measured_rather_than_zero() -> None:
    meter = SpeedMeter()
    meter.add(1.0, 8, 80)
    assert set(meter.summary().values()) == {None}


@linux
def test_the_peak_is_the_training_s_own() -> None:
    before = torch.ones(200 * 2**18)  # 200 MiB, held and freed before the meter starts
    del before
    meter = MemoryMeter()
    assert meter.start is not None
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    held = torch.ones(100 * 2**18)
    memory = meter.measure(layer, optimizer, activations=60.0)
    assert held.sum() > 0
    assert memory.train_peak_mib == pytest.approx(100, abs=30)
    assert memory.peak_mib is not None
    assert memory.peak_mib > 200
    assert memory.by_part["activations"] == 60
    rest = memory.by_part["rest"]
    assert rest is not None
    assert memory.train_peak_mib == pytest.approx(60 + rest, abs=0.01)  # the layer is tiny


@linux
def test_of_a_model_that_is_there_the_peak_is_its_bytes_and_what_training_adds() -> None:
    earlier = torch.ones(300 * 2**18)  # what another training held
    del earlier
    model = nn.Linear(2**12, 50 * 2**6)  # 50 MiB
    meter = MemoryMeter(model=model)
    held = torch.ones(100 * 2**18)
    memory = meter.measure(model, torch.optim.SGD(model.parameters()))
    assert held.sum() > 0
    assert memory.train_peak_mib == pytest.approx(150, abs=30)
    assert memory.peak_mib is not None and meter.start is not None
    assert memory.peak_mib == pytest.approx(meter.start + memory.train_peak_mib, abs=1)
    assert "before the training of a loaded model" in memory.how


def test_where_no_peak_is_told_a_record_does_not_say_how_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_STATUS", "_STATM", "_CLEAR_REFS"):
        monkeypatch.setattr(meters, name, tmp_path / "none" / name)
    model = nn.Linear(2, 2)
    memory = MemoryMeter(model=model).measure(model, torch.optim.SGD(model.parameters()))
    assert (memory.peak_mib, memory.train_peak_mib) == (None, None)
    assert memory.how.startswith("no peak, which this system doesn't tell; activations = ")


@linux
def test_a_peak_that_can_not_be_reset_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "_CLEAR_REFS", tmp_path / "none" / "clear_refs")
    model = nn.Linear(2, 2)
    memory = MemoryMeter(model=model).measure(model, torch.optim.SGD(model.parameters()))
    assert memory.peak_mib and memory.train_peak_mib is None
    assert memory.how.startswith(
        "VmHWM of the whole process: this system does not let it be reset;"
    )


def test_parts_are_the_bytes_of_their_tensors() -> None:
    model = nn.Sequential(LoRALinear(nn.Linear(64, 32).bfloat16().requires_grad_(False), 4, 1.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(torch.randn(3, 64).bfloat16()).sum().backward()
    optimizer.step()
    parts = MemoryMeter().measure(model, optimizer).by_part
    adapter = 4 * 4 * (64 + 32) / 2**20
    assert parts["weights"] == pytest.approx(2 * (64 * 32 + 32) / 2**20)
    assert parts["adapters"] == pytest.approx(adapter)
    assert parts["gradients"] == pytest.approx(adapter)
    assert parts["optimizer"] == pytest.approx(2 * adapter, rel=0.02)  # two moments and the step


def test_without_a_peak_the_rest_is_not_measured_and_activations_are() -> None:
    layer = nn.Linear(2, 2)
    memory = MemoryMeter("mps").measure(layer, torch.optim.SGD(layer.parameters()), 60.0)
    assert memory.train_peak_mib is None
    assert memory.by_part["rest"] is None
    assert memory.by_part["activations"] == 60


@linux
def test_what_putting_a_stopped_training_back_needs_is_no_part_of_its_peak() -> None:
    meter, layer = MemoryMeter(), nn.Linear(2, 2)
    read = torch.ones(200 * 2**18)
    del read
    meter.resume_from([5000.0, 50.0])
    memory = meter.measure(layer, torch.optim.AdamW(layer.parameters()))
    assert memory.peak_mib == 5000
    assert memory.train_peak_mib == pytest.approx(50, abs=20)
    meter.resume_from([10.0, 20.0])
    held = torch.ones(100 * 2**18)
    memory = meter.measure(layer, torch.optim.AdamW(layer.parameters()))
    assert held.sum() > 0
    assert memory.train_peak_mib == pytest.approx(100, abs=30)
    assert memory.peak_mib is not None and memory.peak_mib > 100
