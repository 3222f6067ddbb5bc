"""sentences.cpp against a formula in float64, its masks against their readable form."""

from __future__ import annotations

import dataclasses
import itertools
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from peftlab.engine import sentences
from peftlab.engine.bits import Bits, Counter, draw_mask, philox
from peftlab.engine.packing import Packing, make_packing
from peftlab.engine.sentences import AttentionOptions

LENGTHS = [3, 17, 1, 40, 16]
COUNTER = Counter(2**40 + 7, 3)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Else what follows would test nothing: apt-get install g++, and ninja comes with peftlab."""
    assert sentences.KERNEL.is_built()


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers
        ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_generator_is_philox(counter: list[int], key: int, words: str) -> None:
    found = philox(np.array(counter, np.uint64), key)
    assert " ".join(f"{word:08x}" for word in found) == words


def of_batch(found: Packing, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value (1, heads, rows, width), side by side as joined layers leave them."""
    torch.manual_seed(0)
    rows = torch.randn(1, len(found.place_of_row), 3, heads, width).to(dtype)
    return [part.requires_grad_() for part in rows.permute(2, 0, 3, 1, 4).detach().unbind()]


def expected(qkv: list[Tensor], positions: Tensor | None, how: AttentionOptions) -> Tensor:
    """The formula, in float64, sentence by sentence."""
    found = qkv[0].new_zeros(1, qkv[0].shape[2], *qkv[0].shape[1::2])
    bounds = how.packing.bounds.tolist()
    size = (how.packing.size, how.heads, how.packing.length)
    places = (size[0] * size[1], size[2], size[2])
    drop = draw_mask(places, how.p, how.counter).double().view(*size, -1)
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        q, k, v = (x[0, :, start:end] for x in qkv)
        scores = q @ k.transpose(1, 2) * how.scaling
        if positions is not None:
            scores = scores + positions[:, : end - start, : end - start]
        shares = scores.softmax(-1) * drop[index, :, : end - start, : end - start]
        asked = slice(None, how.n_queries or None)
        found[0, start:end][asked] = (shares @ v).transpose(0, 1)[asked]
    return found


@pytest.mark.parametrize(("heads", "width"), [(2, 32), (3, 20), (1, 64)])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)])
def test_outputs_and_gradients_are_the_formulas(
    heads: int,
    width: int,
    p: float,
    asked: int,
    with_positions: bool,
    dtype: torch.dtype,
    bound: float,
) -> None:
    """In fp32 within its ε some ten times; in bf16 within the rounding of what comes out."""
    found = make_packing(LENGTHS, max(LENGTHS))
    qkv = of_batch(found, heads, width, dtype)
    positions = torch.randn(heads, max(LENGTHS), max(LENGTHS)) if with_positions else None
    positions_shape = None if positions is None else positions.shape
    learned = [] if positions is None else [positions.requires_grad_()]
    how = AttentionOptions(found, heads, width**-0.5, asked, p, COUNTER)
    y = sentences.attention(*qkv, positions, how)
    exact = [x.detach().double().requires_grad_() for x in [*qkv, *learned]]
    wanted = expected(exact[:3], exact[3] if learned else None, how)
    g = torch.randn(y.shape).to(dtype)
    g[:, found.n_tokens :] = 0
    pairs = [
        (y, wanted),
        *zip(
            torch.autograd.grad(y, [*qkv, *learned], g),
            torch.autograd.grad(wanted, exact, g.double()),
            strict=True,
        ),
    ]
    for one, other in pairs:
        assert one.dtype == (dtype if one.shape != positions_shape else torch.float32)
        assert (one.double() - other).norm() <= bound * other.norm()
    assert not y[:, found.n_tokens :].any()


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    found = make_packing(LENGTHS * 3, max(LENGTHS))
    how = AttentionOptions(found, 2, 0.2, 0, 0.1, COUNTER)
    passes = []
    usual = torch.get_num_threads()
    for n in (1, threads):
        torch.set_num_threads(n)
        try:
            qkv = of_batch(found, 2, 32, torch.bfloat16)
            y = sentences.attention(*qkv, None, how)
            passes.append([y, *torch.autograd.grad(y.float().square().sum(), qkv)])
        finally:
            torch.set_num_threads(usual)
    assert all(torch.equal(one, other) for one, other in zip(*passes, strict=True))


def test_a_sentence_without_a_token_and_rows_that_are_not_there_are_refused() -> None:
    found = make_packing([3, 4], 4)
    q, k, v = (x.detach() for x in of_batch(found, 1, 32, torch.float32))
    for bounds in ([0, 3, 3], [0, 4, 3], [0, 3, 900], [-1, 3, 7], [1, 3, 7]):
        wrong = dataclasses.replace(found, bounds=torch.tensor(bounds))
        with pytest.raises(RuntimeError, match="sentences must have tokens, and rows"):
            sentences.attention(q, k, v, None, AttentionOptions(wrong, 1, 1.0, 0, 0.0, COUNTER))


def test_unlike_precisions_are_made_one_and_any_gradient_is_taken() -> None:
    found = make_packing([3, 4], 4)
    q, k, v = of_batch(found, 1, 32, torch.bfloat16)
    y = sentences.attention(
        q.float(), k, v.float(), None, AttentionOptions(found, 1, 1.0, 0, 0.0, COUNTER)
    )
    y.sum().backward()  # one number expanded
    assert y.dtype == torch.bfloat16 and v.grad is not None and v.grad.abs().sum() > 0


def test_large_scores_are_no_infinities() -> None:
    found = make_packing([5], 5)
    qkv = [x.detach() * 100 for x in of_batch(found, 1, 32, torch.float32)]
    how = AttentionOptions(found, 1, 1.0, 0, 0.0, COUNTER)
    y = sentences.attention(*qkv, None, how)
    wanted = expected([x.double() for x in qkv], None, how)
    assert (y - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    """A training that has diverged must be seen."""
    found = make_packing([3, 4], 4)
    q, k, v = (x.detach() for x in of_batch(found, 1, 32, dtype))
    v[0, 0, 1, 5] = torch.nan
    y = sentences.attention(q, k, v, None, AttentionOptions(found, 1, 1.0, 0, 0.0, COUNTER))
    assert y[0, :3, 0, 5].isnan().all() and y.isnan().sum() == 3


def test_what_is_kept_has_the_size_of_its_inputs() -> None:
    """P alone would be as large as the sentence is long; here it is longer than wide."""
    found = make_packing([400], 400)
    qkv = of_batch(found, 1, 32, torch.float32)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        sentences.attention(*qkv, None, AttentionOptions(found, 1, 0.2, 0, 0.1, COUNTER))
    n_rows = len(found.place_of_row)
    assert sum(kept.values()) == n_rows * (3 * 32 + 1) * 4


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_keep_as_often_as_they_should_and_no_two_are_alike(p: float) -> None:
    one, other = (draw_mask((4, 3, 64), p, Counter(1, call)) for call in (0, 1))
    n = one.numel()
    kept = (one > 0).double()
    assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    assert one.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    spread = 5 / n**0.5
    rows = kept.flatten(0, 1)
    for a, b in (
        (kept, (other > 0).double()),  # another call
        (kept, (draw_mask((4, 3, 64), p, Counter(2, 0)) > 0).double()),  # another key
        (rows[:-1], rows[1:]),  # the next head or sentence
        (rows[:, :-1], rows[:, 1:]),  # the next row
        (rows[:, :-8], rows[:, 8:]),  # of another counter
        (rows[..., :-1], rows[..., 1:]),  # the next column
    ):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 1.5 * spread


def test_counters_follow_torchs_seed_and_never_come_twice() -> None:
    torch.manual_seed(4)
    bits = Bits()
    torch.manual_seed(5)
    first = [bits.counter() for _ in range(3)]
    assert first == [Counter(5, call) for call in range(3)]
    torch.manual_seed(6)
    assert bits.counter() == Counter(6, 0)
    torch.manual_seed(5)
    assert bits.counter() == first[0]


ROOM = """
import os
import platform
import subprocess
from pathlib import Path
import torch
from peftlab.engine import packing, sentences
from peftlab.engine.bits import Counter
from peftlab.engine.heap import MIB, trim_heap

def resident_mib():
    trim_heap()
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / MIB

def passes(length):
    laid = packing.make_packing([length], length)
    x = torch.ones(1, 1, len(laid.place_of_row), 16, requires_grad=True)
    how = sentences.AttentionOptions(laid, 1, 0.25, 0, 0.0, Counter(0, 0))
    sentences.attention(x, x, x, None, how).sum().backward()

assert sentences.KERNEL.is_built()
passes(16)
before = resident_mib()
passes(2000)
print(resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_what_it_works_in_is_given_back_behind_the_call() -> None:
    """Of a sentence of 2,000 tokens that is 77 MiB a thread."""
    done = subprocess.run([sys.executable, "-c", ROOM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8


def test_streams_under_one_seed_differ_and_are_the_seed_s_all_the_same() -> None:
    """So does each `with fast(model)` of a caller's own loop, which sets no seed."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        streams = [Bits() for _ in range(3)]
        drawn.append([(bits.counter(), bits.counter(), bits.lanes(4).tolist()) for bits in streams])
        for one, other, _ in drawn[-1]:
            assert (one.call, other.call) == (0, 1) and one.key == other.key
    assert drawn[0] == drawn[1]
    assert len({str(found) for found in drawn[0]}) == len({one.key for one, *_ in drawn[0]}) == 3
    before = torch.get_rng_state()
    Bits()  # in evaluation nothing is drawn
    assert torch.equal(torch.get_rng_state(), before)
