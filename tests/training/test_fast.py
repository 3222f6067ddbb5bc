"""Training inside `fast` is the same training: its losses, step by step, against the plain path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from peftlab.methods import inject, make
from peftlab.training import Encoded, Loop, MemoryMeter, fit
from peftlab.training.passes import PART_TOKENS, n_parts, parts_of
from plans import changed, plan

STEPS, BATCH = 50, 8
PLAN = plan(
    kind="classes", epochs=5, batch_size=BATCH, lr=2e-3, head_lr=2e-3, weight_decay=0.0, warmup=0.1,
    clip=1.0, seed=0, device="cpu", autocast=False,
)  # fmt: skip
SIZES = {
    "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def data(n: int = STEPS * BATCH // PLAN.settings.epochs, longest: int = 9) -> Encoded:
    """Sequences of 3 to `longest` tokens, of class 1 if they have token 7."""
    draws = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(3, 14, (3 + i % (longest - 2),), generator=draws).tolist() for i in range(n)
    ]
    features = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    return Encoded(features, [int(7 in row) for row in rows], dict.fromkeys(features, 0), 0)


def build(kind: str, dtype: torch.dtype, method: str = "lora") -> Any:
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return inject(model.to(dtype), make(method, {"rank": 4} if method == "lora" else {}))


def losses(
    kind: str, dtype: torch.dtype, fast: bool, train: Encoded | None = None, **changes: Any
) -> torch.Tensor:
    run = changed(PLAN, fast=fast, **changes)
    train = train or data()
    loop = Loop(build(kind, dtype), make("lora"), train, run)
    fitted = fit(loop, train, lambda *_: None, lambda *_: None, MemoryMeter())
    found = [row["loss"] for row in fitted.curve if "loss" in row]
    return torch.tensor(found, dtype=torch.float64)


def rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


def test_in_fp32_bit_for_bit_where_no_sum_is_reordered() -> None:
    """GPT-2's attention stays sdpa's, its last layer whole, and fp32 layers are left alone."""
    plain = losses("gpt2", torch.float32, fast=False)
    assert torch.equal(losses("gpt2", torch.float32, fast=True), plain)
    assert len(plain) == STEPS and plain[-5:].mean() < plain[:5].mean()


def test_in_fp32_within_rounding_where_one_is() -> None:
    """A sum of n terms in another order moves by at most n·ε of its terms' size, here 128 · 6e-8.

    That is 8e-6 of a loss near 0.7, and 50 updates, each as far off, add up to no more than 50
    times as much.
    """
    plain = losses("bert", torch.float32, fast=False)
    quick = losses("bert", torch.float32, fast=True)
    assert (quick - plain).abs().max() <= 50 * 8e-6 * 0.7
    assert not torch.equal(quick, plain)  # else it was not fast


def test_in_bf16_as_near_to_fp32_as_the_plain_path_is() -> None:
    """Bf16 rounds each number to 2⁻⁹ of it. Both paths round as often, at other places.

    So their errors, against fp32, are independent and of one size e: they differ from each other
    by √2·e. The bound, 2·e, leaves a factor √2 for chance. That e itself is bf16's: some ten
    roundings a layer and two layers make √20 · 2⁻⁹ ≈ 1 % of the logits, which are about 1, and a
    loss moves by no more than twice its largest logit.
    """
    exact = losses("bert", torch.float32, fast=False)
    plain = losses("bert", torch.bfloat16, fast=False)
    quick = losses("bert", torch.bfloat16, fast=True)
    error = rms(plain - exact)
    assert 0 < error < 0.02
    assert rms(quick - exact) <= 2 * error
    assert rms(quick - plain) <= 2 * error
    assert not torch.equal(quick, plain)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_parts_give_the_losses_of_the_whole(method: str) -> None:
    train = data(64, longest=60)
    found, cut = {}, {}
    for parts in (True, False):
        run = changed(PLAN, parts=parts, batch_size=32, lr=2e-4)
        loop = Loop(build("bert", torch.float32, method), make(method), train, run)
        fitted = fit(loop, train, lambda *_: None, lambda *_: None, MemoryMeter())
        found[parts] = torch.tensor([row["loss"] for row in fitted.curve if "loss" in row])
        cut[parts] = fitted.parts
    assert cut == {True: 2.0, False: 1.0}  # the mean over its batches, as the record has it
    assert found[False][-3:].mean() < found[False][:3].mean()
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "width", "accumulation", "by_tokens", "parts"),
    [
        (32, 32, 1, True, 1),  # 1,024 tokens
        (32, 33, 1, True, 2),
        (32, 64, 1, True, 2),
        (32, 65, 1, True, 3),
        (32, 512, 1, True, 16),
        (1, 5000, 1, True, 1),  # an example is never cut
        (32, 512, 1, False, 1),
        (32, 16, 4, True, 4),
        (32, 512, 4, False, 4),
        (3, 4, 9, True, 3),
    ],
)
def test_parts_of_a_batch(
    size: int, width: int, accumulation: int, by_tokens: bool, parts: int
) -> None:
    assert PART_TOKENS == 1024
    asked = changed(PLAN, accumulation=accumulation, parts=by_tokens)
    assert n_parts(size, size * width, asked) == parts


@pytest.mark.parametrize(("size", "accumulation"), [(10, 6), (9, 4), (3, 9), (8, 2)])
def test_a_batch_is_taken_in_as_many_parts_as_are_asked_for(size: int, accumulation: int) -> None:
    lengths = [3 + 7 * i % 11 for i in range(size)]
    data = Encoded({"input_ids": [[1] * n for n in lengths]}, [0] * size, {"input_ids": 0}, 0)
    parts = parts_of(list(range(size)), data, changed(PLAN, accumulation=accumulation))
    assert len(parts) == min(size, accumulation)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [data.lengths[i] for part in parts for i in part] == sorted(lengths)
    pieces = data.batch(range(size)).split(accumulation)
    assert [len(piece.labels) for piece in pieces] == [len(part) for part in parts]


def test_a_cpu_takes_the_batches_of_every_method_in_parts_unless_asked_not_to() -> None:
    assert PLAN.by_tokens
    for otherwise in ({"parts": False}, {"fast": False}, {"device": "cuda"}):
        assert not changed(PLAN, **otherwise).by_tokens


@pytest.fixture
def with_dropout() -> Callable[..., torch.Tensor]:
    def run(fast: bool, p: float = 0.3, seed: int = 0) -> torch.Tensor:
        train, asked = data(), changed(PLAN, fast=fast, seed=seed)
        model = build("bert", torch.float32)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = p
        loop = Loop(model, make("lora"), train, asked)
        fitted = fit(loop, train, lambda *_: None, lambda *_: None, MemoryMeter())
        return torch.tensor([row["loss"] for row in fitted.curve if "loss" in row])

    return run


def test_dropout_is_the_seeds_alone(with_dropout: Callable[..., torch.Tensor]) -> None:
    once, again, plain = (with_dropout(fast) for fast in (True, True, False))
    assert torch.equal(once, again)
    assert not torch.equal(once, plain)  # other masks
    assert abs(once.mean() - plain.mean()) < 0.05
    without = with_dropout(True, p=0.0)
    torch.testing.assert_close(without, with_dropout(False, p=0.0), rtol=1e-3, atol=1e-4)
    assert (once - without).abs().max() > 0.01
