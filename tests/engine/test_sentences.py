"""sentences.cpp against a formula in float64, its masks against their readable form."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from peftlab.engine import kernels, sentences
from peftlab.engine.bits import Bits, Counter, draw_mask, philox
from peftlab.engine.packing import Packing, make_packing
from peftlab.engine.sentences import AttentionOptions
from peftlab.layers import native

LENGTHS = [3, 17, 1, 40, 16]
COUNTER = Counter(2**40 + 7, 3)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Else what follows would test nothing: apt-get install g++, and ninja comes with peftlab."""
    assert sentences.is_built()


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

assert sentences.is_built()
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


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A process that has built nothing yet; what this one has is known again behind the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for one in (native.is_built, native.compiler):
        monkeypatch.setattr(native, one.__name__, functools.cache(one.__wrapped__))
    return monkeypatch


def test_a_build_that_fails_is_a_warning_and_not_tried_in_every_process(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[list[str]] = []

    def fails(command: list[str]) -> None:
        tried.append(command)
        raise native.BuildError("Ninja is required")

    unbuilt.setattr(native, "_run", fails)
    for _ in range(2):  # as another process
        with pytest.warns(UserWarning, match=r"sentences.cpp can't be built.*Ninja is required"):
            assert not sentences.is_built()
        native.is_built.cache_clear()
    assert len(tried) == 1
    told = "not built: Ninja is required (tried again in an hour)"
    later = "built when first needed"
    others = dict.fromkeys(kernels(), later) | {"sentences.cpp": told}
    assert kernels() == others
    (failed,) = tmp_path.rglob("failed-*.txt")
    os.utime(failed, (0, 0))
    with pytest.warns(UserWarning, match="Ninja is required"):
        assert not sentences.is_built()
    assert len(tried) == 2


def test_another_compiler_is_tried_at_once(unbuilt: pytest.MonkeyPatch) -> None:
    """On a shared home folder one machine's broken compiler barred every other's for an hour."""

    def fails(command: list[str]) -> None:
        raise native.BuildError("no compiler")

    unbuilt.setattr(native, "_run", fails)
    with pytest.warns(UserWarning, match="no compiler"):
        assert not sentences.is_built()
    assert "no compiler" in kernels()["sentences.cpp"]
    unbuilt.setenv("CXX", "g++")
    assert kernels()["sentences.cpp"] == "built when first needed"


def test_without_a_home_folder_nothing_is_built_and_that_is_told(
    unbuilt: pytest.MonkeyPatch,
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    unbuilt.delenv("XDG_CACHE_HOME")
    unbuilt.setattr(Path, "home", homeless)
    assert "set XDG_CACHE_HOME" in kernels()["sentences.cpp"]
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME"):
        assert not sentences.is_built()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_build_that_takes_too_long_is_ended_with_all_its_processes(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def impatient(process: Any, timeout: float) -> Any:
        while not (tmp_path / "child").exists():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    unbuilt.setattr(subprocess.Popen, "communicate", impatient)
    begun = f"echo $! > {tmp_path / 'begun'}; mv {tmp_path / 'begun'} {tmp_path / 'child'}"
    with pytest.raises(native.BuildError, match=r"more than 60 s"):
        native._run(["bash", "-c", f"sleep 600 & {begun}; wait"])
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(100):  # the signal is sent; the system takes a moment
        try:
            if child.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail("the compiler runs on")


def test_the_compiler_s_own_words_are_given() -> None:
    with pytest.raises(native.BuildError, match=r"^fatal error: no such file$"):
        native._run(["bash", "-c", "echo first >&2; echo 'fatal error: no such file' >&2; exit 1"])


def test_without_a_compiler_nothing_is_said(
    unbuilt: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    unbuilt.setenv("CXX", "no-such-compiler")
    assert not sentences.is_built() and not recwarn
    wanted = "not built: no C++ compiler is found by CXX=no-such-compiler"
    assert kernels()["rows.cpp"] == wanted


def test_what_is_built_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built where the login node has one, used where the other nodes have none."""
    assert sentences.is_built()
    monkeypatch.setenv("CXX", "no-such-compiler")
    for one in (native.is_built, native.compiler):
        monkeypatch.setattr(native, one.__name__, functools.cache(one.__wrapped__))
    assert sentences.is_built()
    assert kernels()["sentences.cpp"] == "built"


def test_of_a_build_s_lines_the_compiler_s_reason_is_given() -> None:
    lines = "FAILED: a.o; a.cpp:1:2: error: no thread; ninja: build stopped: subcommand failed."
    words = "; ".join(f"echo '{line}' >&2" for line in lines.split("; "))
    with pytest.raises(native.BuildError, match=r"^a.cpp:1:2: error: no thread$"):
        native._run(["bash", "-c", f"{words}; exit 1"])


def test_clang_is_refused_before_it_builds(unbuilt: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its libraries have another OpenMP, and could not be loaded."""
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\necho clang version 14\n")
    compiler.chmod(0o755)
    unbuilt.setenv("CXX", str(compiler))
    with pytest.warns(UserWarning, match=r"is clang.* set CXX=g\+\+"):
        assert not sentences.is_built()
    assert "is clang" in kernels()["sentences.cpp"]


def test_a_cache_that_can_t_be_written_is_told_at_once(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unbuilt.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
    assert f"{tmp_path} can't be written; set XDG_CACHE_HOME" in kernels()["sentences.cpp"]


def test_where_the_flags_are_not_the_compiler_s_nothing_is_tried(
    unbuilt: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A Mac's clang refuses -fopenmp, or is a stub that offers to install one."""
    assert native.compiler() is not None
    native.compiler.cache_clear()
    unbuilt.setattr(sys, "platform", "darwin")
    assert not sentences.is_built() and not recwarn
    assert kernels()["rows.cpp"] == "not built: that is done on Linux alone"


def test_it_is_built_once_with_a_word_and_again_if_the_library_is_spoilt(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Path] = []  # a second copy of the same operations is more than torch takes
    unbuilt.setattr(torch.ops, "load_library", loaded.append)
    built: list[list[str]] = []

    def builds(command: list[str]) -> None:
        built.append(command)
        (Path(command[6]) / "sentences.so").write_bytes(b"a library")

    unbuilt.setattr(native, "_run", builds)
    for _ in range(2):
        assert native.is_built(sentences.SOURCE, *sentences.FLAGS)
        native.is_built.cache_clear()
    assert capfd.readouterr().err == "building sentences.cpp, once\n"
    (library,) = tmp_path.rglob("*.so")
    assert [path.name for path in library.parent.iterdir()] == ["sentences.so"]
    assert loaded == [library] * 2 and len(built) == 1
    assert kernels()["sentences.cpp"] == "built"

    def spoilt(path: Path) -> None:
        if len(built) == 1:
            raise OSError("file too short")
        loaded.append(path)

    unbuilt.setattr(torch.ops, "load_library", spoilt)
    assert native.is_built(sentences.SOURCE, *sentences.FLAGS)
    assert len(built) == 2 and loaded == [library] * 3


def test_another_header_is_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else a kernel that was built before goes on as it was."""
    changed = tmp_path / native.HEADER.name
    changed.write_text(native.HEADER.read_text() + "// changed")
    before = native._library(sentences.SOURCE, sentences.FLAGS)
    monkeypatch.setattr(native, "HEADER", changed)
    assert native._library(sentences.SOURCE, sentences.FLAGS) != before
