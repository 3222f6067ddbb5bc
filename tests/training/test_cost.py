"""What is counted without numbers is what a training with numbers holds."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peftlab.bench.process import activation_checkpointing
from peftlab.layers import Int8Linear, NF4Linear, Precision
from peftlab.methods import METHODS, inject, make
from peftlab.models import find, load_source, sized_model
from peftlab.training import Encoded, Loop
from peftlab.training.cost import LiveMeter, Shape, count_step, make_fake
from peftlab.training.meters import MIB, sizes
from peftlab.training.passes import batch_loss
from plans import plan

SIZE, WIDTH = 6, 24
PARTS = ("weights", "adapters", "gradients", "optimizer")


def precision_of(method: str, held: str = "bf16") -> Precision:
    return Precision(held, "bf16").of_base(make(method).base_precision)


def data() -> Encoded:
    ids = [[5] * (WIDTH - i % 2) for i in range(SIZE)]  # of two lengths: some are padded
    features = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    return Encoded(features, [i % 2 for i in range(SIZE)], dict.fromkeys(features, 0), 0)


def trained(
    folder: Path, method: str, held: str = "bf16", **settings: Any
) -> tuple[dict[str, float], float]:
    """The sizes of the parts, and what is saved, in a real first step."""
    precision = precision_of(method, held)
    run = plan(batch_size=SIZE, autocast=precision.autocast, **settings)
    torch.manual_seed(0)
    model = load_source(find(str(folder)), 2, precision, seed=0)
    injected = make(method, {"rank": 3} if method == "vera" else {})
    inject(model, injected)
    loop = Loop(model, injected, data(), run)
    from peftlab.engine import fast

    with (
        activation_checkpointing(model, run.settings.checkpointing),
        fast(model, run.settings.fast),
    ):
        loop.try_widest()
        list(loop.epoch(0))
        parts = sizes(model, loop.optimizer)
    assert loop.saved_mib is not None
    return parts, loop.saved_mib


def counted(
    folder: Path, method: str, held: str = "bf16", in_parts: bool = False, **settings: Any
) -> Any:
    precision = precision_of(method, held)
    run = plan(batch_size=SIZE, autocast=precision.autocast, **settings)
    injected = make(method, {"rank": 3} if method == "vera" else {})
    model = inject(sized_model(folder, 2, precision), injected)
    packed = run.settings.fast and not run.settings.checkpointing
    shape = Shape(SIZE, WIDTH, sum(data().lengths) if packed else SIZE * WIDTH, packed)
    with activation_checkpointing(model, run.settings.checkpointing):
        return count_step(model, injected, run, shape, shape, in_parts)


def test_ctrl_c_waits_for_the_end_of_a_count(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a storage's end calls back it would be printed and forgotten, or end the process."""
    reached = []

    def interrupted(*arguments: Any) -> Any:
        loss = batch_loss(*arguments)
        signal.raise_signal(signal.SIGINT)
        reached.append(loss)
        return loss

    monkeypatch.setattr("peftlab.training.cost.batch_loss", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's job
    try:
        with pytest.raises(KeyboardInterrupt):
            counted(tiny_model, "head")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached


@pytest.mark.parametrize("method", METHODS)
def test_every_part_is_what_a_real_step_holds(method: str, tiny_model: Path) -> None:
    held, saved = trained(tiny_model, method)
    found = counted(tiny_model, method)
    assert {name: getattr(found, name) for name in PARTS} == pytest.approx(held, rel=1e-6)
    assert found.activations == pytest.approx(saved, rel=1e-3)


@pytest.mark.parametrize("precision", ["int8", "int7"])
@pytest.mark.parametrize("method", ["lora", "dora", "houlsby"])
@pytest.mark.parametrize("width", [32, 128])  # of 128 and 192 nothing is packed on AMX
def test_codes_and_what_is_packed_of_them_are_counted_once(
    method: str,
    precision: str,
    width: int,
    make_tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = make_tiny_model(tmp_path / "model", width)
    held, saved = trained(folder, method, precision)
    found = counted(folder, method, precision)
    assert {name: getattr(found, name) for name in PARTS} == pytest.approx(held, rel=1e-6)
    assert found.activations == pytest.approx(saved, rel=1e-3)


@pytest.mark.parametrize("settings", [{"fast": False}, {"checkpointing": True}])
def test_settings_that_change_what_is_saved_are_followed(
    settings: dict[str, Any], tiny_model: Path
) -> None:
    _, usual = trained(tiny_model, "lora")
    _, saved = trained(tiny_model, "lora", **settings)
    assert saved != pytest.approx(usual, rel=0.05)
    assert counted(tiny_model, "lora", **settings).activations == pytest.approx(saved, rel=1e-3)


@pytest.mark.parametrize("ours", [True, False])
def test_four_bits_are_made_dense_where_they_are(
    ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftlab.layers.nf4.has_bitsandbytes", lambda: not ours)
    monkeypatch.setattr("peftlab.layers.nf4.metadata.version", lambda name: "0")
    layer = NF4Linear(torch.empty(64, 32, device="meta"), None, torch.bfloat16, nn.Linear)
    model = nn.Sequential(layer)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    make_fake(model, mode, torch.device("cuda"))
    with mode, torch.no_grad():
        y = model(torch.empty(4, 32, device="cuda", dtype=torch.bfloat16))
    assert (y.device.type, y.shape) == ("cuda", (4, 64))


def test_products_in_eight_bits_are_counted_as_a_gpu_makes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With their sums in 32 bits: a batch that does not fit was taken for one that does."""
    monkeypatch.setattr("peftlab.layers.int8.product_kind", lambda device: "wide")
    monkeypatch.setattr("peftlab.layers.products.fits", lambda *shape: pytest.fail("it is built"))
    layer = Int8Linear(torch.randn(64, 32), None, torch.bfloat16, nn.Linear)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    make_fake(nn.Sequential(layer), mode, torch.device("cuda"))
    with mode, torch.no_grad():
        x = torch.empty(128, 32, device="cuda", dtype=torch.bfloat16)
        with LiveMeter([], "cuda") as live:
            y = layer(x)
    assert (y.device.type, y.shape) == ("cuda", (128, 64))
    assert live.peak >= 128 * 64 * torch.int32.itemsize


def test_counting_spoils_nothing_that_a_training_keeps(tiny_model: Path) -> None:
    """Functions with a memory, such as the masks' constants, must not remember mere shapes."""
    counted(tiny_model, "lora")
    counted(tiny_model, "qlora")
    trained(tiny_model, "lora")
    trained(tiny_model, "qlora")


def test_gradients_of_a_part_are_there_while_the_next_is_passed(tiny_model: Path) -> None:
    whole, parts = (counted(tiny_model, "full", in_parts=split) for split in (False, True))
    assert parts.transient > whole.transient
    assert parts.gradients == whole.gradients


def test_an_evaluation_saves_nothing(tiny_model: Path) -> None:
    found = counted(tiny_model, "lora")
    assert 0 < found.evaluation < found.activations + found.transient


def test_a_shape_counts_as_large_as_it_is() -> None:
    """Live bytes follow storages: a view is none, what is dropped is gone, the peak stays."""
    with FakeTensorMode(), LiveMeter() as live:
        first = torch.zeros(256, 1024)
        view = first[1:].view(-1)
        second = first + 1
        del first, view
        third = second * 2
    assert third.shape == (256, 1024)
    assert live.peak == 2 * MIB
    assert sum(live.now) == 2 * MIB


def test_what_is_large_lies_beside_the_heap() -> None:
    """Heap and large blocks peak at different moments, and a heap is never given back."""
    with FakeTensorMode(), LiveMeter() as live:
        small = torch.zeros(16 * MIB // 4)
        del small
        large = torch.zeros(40 * MIB // 4)
    assert large.numel()
    assert live.peak == 56 * MIB


def test_other_devices_have_no_such_heap() -> None:
    with FakeTensorMode(), LiveMeter(device="cuda") as live:
        small = torch.zeros(16 * MIB // 4)
        del small
        large = torch.zeros(40 * MIB // 4)
    assert large.numel()
    assert live.peak == 40 * MIB


def test_own_tensors_do_not_count() -> None:
    with FakeTensorMode():
        own = torch.zeros(MIB)
        with LiveMeter([own]) as live:
            own.view(2, -1).add_(1)
    assert live.peak == 0


def test_the_model_that_was_counted_had_no_numbers(tiny_model: Path) -> None:
    model = sized_model(tiny_model, 3, Precision("bf16", "bf16"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    real = load_source(find(str(tiny_model)), 3, Precision("bf16", "bf16"), seed=0)
    shapes = {n: (p.shape, p.dtype) for n, p in copy.copy(model).named_parameters()}
    assert shapes == {n: (p.shape, p.dtype) for n, p in real.named_parameters()}
