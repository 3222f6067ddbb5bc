"""In one's own process torch takes no more cores than others leave, and says how many it took."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import peftlab
from peftlab.machine import load, threads
from peftlab.machine.load import threads_left
from peftlab.machine.threads import threads_for
from peftlab.models import is_bundled_here
from peftlab.tasks import Task

needs_stat = pytest.mark.skipif(not load.STAT.exists(), reason="no /proc/stat here")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "cores", "share", "left"),
    [(2, 2, 0.2, 2), (2, 2, 1.0, 1), (2, 2, 9.0, 1), (8, 16, 3.0, 8), (16, 16, 1.1, 15)],
)
def test_threads_are_as_many_as_there_are_cores_left(
    threads: int, cores: int, share: float, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "own_cores", lambda: set(range(cores)))
    assert threads_left(threads, share) == left


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("device", "asked", "share", "during"),
    [("cpu", None, 0.0, 2), ("cpu", None, 1e4, 1), ("cpu", 2, 1e4, 2), ("cuda", None, 1e4, 2)],
)
def test_threads_are_put_back(
    device: str,
    asked: int | None,
    share: float,
    during: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "others_share", lambda: share)
    with pytest.raises(KeyError), threads_for(device, asked):
        assert torch.get_num_threads() == during
        raise KeyError
    assert torch.get_num_threads() == 2


@needs_stat
def test_a_look_holds_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single sentence is answered in less time than a look takes."""
    share = load.others_share()
    monkeypatch.setattr(load.time, "sleep", lambda s: pytest.fail("looked again"))
    assert load.others_share_lately() == share


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("share", "used"), [(0.0, 2), (1e4, 1)])
def test_the_record_says_the_threads_that_were_used(
    share: float,
    used: int,
    tiny_model: Path,
    tiny_task: Task,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "others_share", lambda: share)
    model, tokenizer = peftlab.load_model(str(tiny_model))
    record = peftlab.train(model, tokenizer, tiny_task, "head", epochs=1, batch_size=8)
    assert record.training["threads"] == record.environment.threads == used
    model, tokenizer = peftlab.load_model(str(tiny_model))
    asked = peftlab.train(model, tokenizer, tiny_task, "head", epochs=1, batch_size=8, threads=2)
    assert asked.environment.threads == 2
    assert torch.get_num_threads() == 2


BESIDE_A_BUSY_CORE = """
import dataclasses, os, subprocess, sys
import torch, peftlab
from peftlab.tasks import Examples, load
task = load("acceptability")
few = lambda split, n: Examples(split.texts[:n], split.labels[:n])
task = dataclasses.replace(task, train=few(task.train, 160), dev=few(task.dev, 8))
def speed(**training):
    model, tokenizer = peftlab.load_model("minilm")
    record = peftlab.train(model, tokenizer, task, "lora", epochs=1, batch_size=16, **training)
    return record.speed.examples_per_s
alone = speed(threads=1)
n_busy = max(1, len(os.sched_getaffinity(0)) // 2)
command = [sys.executable, "-c", "while True: pass"]
busy = [subprocess.Popen(command) for _ in range(n_busy)]
try:
    print(speed() / alone)
finally:
    for process in busy:
        process.kill()
"""


@needs_stat
@pytest.mark.skipif(not is_bundled_here(), reason="needs the extra demo")
def test_beside_a_busy_core_training_keeps_a_sixth_of_the_speed_of_one_thread_alone() -> None:
    """Two threads that spin as long as libgomp's do by default reach a thirtieth (LOG.md)."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    run = subprocess.run(
        [sys.executable, "-c", BESIDE_A_BUSY_CORE],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 1 / 6
