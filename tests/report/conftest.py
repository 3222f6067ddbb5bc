"""Made-up records and curves that look like real ones. Seeded, so that golden files hold."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftlab.naming import slug
from peftlab.records.record import Record
from peftlab.report import build

# adapter parameters, examples/s, MiB above the base, score above .5
METHODS = {
    "full": (22_700_000, 118.0, 340.0, 0.33),
    "head": (0, 390.0, 20.0, 0.12),
    "bitfit": (50_304, 171.0, 60.0, 0.29),
    "lora": (73_728, 158.0, 66.0, 0.32),
    "dora": (78_336, 121.0, 84.0, 0.32),
    "vera": (5_376, 149.0, 63.0, 0.28),
    "houlsby": (305_664, 139.0, 75.0, 0.31),
    "lora-fa": (36_864, 162.0, 58.0, 0.30),
}
TASKS = {
    "cola": ("classes", "matthews", "folder glue/CoLA", 8551, 1043),
    "mrpc": ("classes", "f1", "folder glue/MRPC", 3668, 408),
    "stsb": ("regression", "pearson", "folder glue/STS-B", 5749, 1500),
    "grammar": ("classes", "accuracy", "synthetic", 4000, 800),
}


def make_record(
    method: str = "lora",
    task: str = "mrpc",
    seed: int = 0,
    score: float | None = None,
    **changes: Any,
) -> Record:
    """A done record; `changes` replace fields, `settings`, `training`, `label` those of parts."""
    draw = random.Random(f"{method}-{task}-{seed}")
    n_adapter, speed, mib, quality = METHODS.get(method, METHODS["lora"])
    kind, metric, source, n_train, n_dev = TASKS.get(task, TASKS["mrpc"])
    speed *= {"cola": 1.5, "stsb": 1.2}.get(task, 1.0) * draw.uniform(0.98, 1.02)
    value = 0.5 + quality + draw.uniform(-0.02, 0.02) if score is None else score
    label = changes.pop("label", method)
    training = {"epochs": 3, "batch_size": 32, "lr": 1e-3, "head_lr": 1e-3, "warmup": 0.06}
    settings = {"rank": 8, "alpha": 16.0, "targets": "query,value"}
    train_s = 3 * n_train / speed
    values: dict[str, Any] = {
        "cell": f"minilm-{slug(task)}-{slug(label)}-s{seed}-0123abcd",
        "suite": "demo",
        "model": {"name": "minilm", "revision": None, "sha256": "ab" * 32},
        "task": {
            "name": task,
            "kind": kind,
            "main_metric": metric,
            "source": source,
            "n_train": n_train,
            "n_dev": n_dev,
            "n_truncated": 3,
            "sha256": "cd" * 32,
        },
        "method": {
            "name": method,
            "label": label,
            "settings": settings | changes.pop("settings", {}),
            "targets": ["encoder.layer.*.attention.self.query"],
            "notes": [],
        },
        "training": training | changes.pop("training", {}),
        "precision": "fp32",
        "seed": seed,
        "status": "done",
        "score": {metric: value},
        "best": {"epoch": 2, "score": {metric: value + draw.uniform(0, 0.008)}},
        "n_trainable": {"adapter": n_adapter, "head": 148_610, "total": n_adapter + 148_610},
        "speed": {
            "examples_per_s": speed,
            "tokens_per_s": speed * 41,
            "step_ms_p50": 32_000 / speed,
            "step_ms_p95": 41_000 / speed,
        },
        "memory": {
            "peak_mib": 610 + mib,
            "train_peak_mib": 90 + mib,
            "by_part": {
                "weights": 86.7,
                "adapters": n_adapter * 4 / 2**20,
                "gradients": n_adapter * 4 / 2**20,
                "optimizer": n_adapter * 8 / 2**20,
                "activations": mib * 0.2,
            },
            "how": "VmHWM of /proc/self/status",
        },
        "prepare_s": 0.4,
        "train_s": train_s,
        "eval_s": 6.0,
        "total_s": train_s + 9.1,
        "environment": {
            "commit": "9b55df3" + "0" * 33,
            "dirty": False,
            "python": "3.11.7",
            "packages": {"torch": "2.9.0", "transformers": "5.0.0"},
            "processor": "Example CPU @ 2.0 GHz",
            "gpu": None,
            "threads": 2,
        },
    }
    return Record.model_validate(values | changes)


def make_failed(
    *args: Any, message: str = "the loss became NaN at step 31", **changes: Any
) -> Record:
    """A cell that failed while training."""
    nothing = dict.fromkeys(
        ("score", "best", "n_trainable", "speed", "memory", "prepare_s", "train_s", "eval_s")
    )
    failure = {"kind": "Diverged", "message": message}
    return make_record(*args, status="failed", failure=failure, **nothing, **changes)


def write_curves(record: Record, out: Path, steps: int = 300, epochs: int = 3) -> None:
    """curves/CELL.jsonl: a falling loss, memory that settles, scores that rise to the record's."""
    draw = random.Random(record.cell)
    last = (record.score or {})[record.task.main_metric]
    peak = record.memory.peak_mib if record.memory else None
    train_s = record.train_s or 60.0
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        done = step / steps
        loss = 0.69 * math.exp(-2.2 * done) + 0.08 + draw.gauss(0, 0.05)
        memory = peak and peak * (0.97 + 0.02 * min(1, step / 15) + draw.uniform(0, 0.01))
        row = {"step": step, "epoch": done * epochs, "loss": abs(loss), "lr": 1e-3 * (1 - done)}
        rows.append(row | {"time_s": done * train_s, "memory_mib": memory})
        if step % (steps // epochs) == 0:
            epoch = step // (steps // epochs)
            value = (
                last
                if epoch == epochs
                else last - 0.09 * (1 - epoch / epochs) + draw.gauss(0, 0.006)
            )
            rows.append({"epoch": epoch, "score": {record.task.main_metric: value}})
    path = out / "curves" / f"{record.cell}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What stands for the user's cache: the Vega bundle is built once a session, in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.report.vega.cache_folder", lambda: folder / "peftlab")
        yield folder


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture(scope="session")
def failed() -> Callable[..., Record]:
    return make_failed


@pytest.fixture(scope="session")
def curves() -> Callable[..., None]:
    return write_curves


@pytest.fixture(scope="session")
def suite() -> list[Record]:
    """Three methods on two tasks with two seeds; one cell failed, one method misses a task."""
    records = [
        make_record(method, task, seed)
        for method in ("full", "lora", "vera")
        for task in ("mrpc", "grammar")
        for seed in (0, 1)
        if (method, task) != ("vera", "grammar")
    ]
    records[5] = make_failed("lora", "mrpc", 1)
    return records


@pytest.fixture(scope="session")
def out(suite: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of the suite, with its report. Read it, don't write it."""
    folder = tmp_path_factory.mktemp("out")
    for one in suite:
        if one.status == "done":
            write_curves(one, folder)
    build(folder, "demo", suite)
    return folder
