"""Folders of comparisons with made-up answers, so that who is better is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab import atomic
from peftlab.records.record import Record
from peftlab.records.store import Store, lines_of
from peftlab.tasks.metrics import score

N = 400


class Folder:
    """Runs are added one by one; each gets its record and, unless told not to, its predictions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []

    def add(
        self,
        row: str,
        seed: int,
        wrong: int = 40,
        *,
        task: str = "cola",
        metric: str = "accuracy",
        labels: np.ndarray | None = None,
        predictions: np.ndarray | None = None,
        write: bool = True,
        **changes: Any,
    ) -> Record:
        """A run that answers `wrong` of the N examples wrongly, the same ones first in each row."""
        truth = np.arange(N) % 2 if labels is None else labels
        if predictions is None:
            order = np.random.default_rng(0).permutation(len(truth))
            off = np.random.default_rng([seed, sum(row.encode())]).permutation(len(truth))[:8]
            predictions = truth.copy()
            predictions[order[:wrong]] = 1 - truth[order[:wrong]]
            predictions[off] = 1 - predictions[off]
        is_classes = metric in {"accuracy", "f1", "matthews"}
        value = score([metric], truth, predictions, 2 if is_classes else None)[metric]
        constant = {"majority" if is_classes else "mean": {metric: 0.5 if is_classes else 2.0}}
        record = Record.model_validate(
            {
                "cell": f"m-{task}-{row}-s{seed}",
                "suite": "s",
                "model": {"name": "m", "revision": None, "sha256": None},
                "task": {
                    "name": task,
                    "kind": "classes" if is_classes else "regression",
                    "main_metric": metric,
                    "source": "made",
                    "n_train": 10,
                    "n_dev": len(truth),
                    "n_truncated": 0,
                    "sha256": task,
                    "labels": ["no", "yes"] if is_classes else [],
                    "baselines": constant,
                },
                "method": {
                    "name": row,
                    "label": row,
                    "settings": {},
                    "targets": [],
                    "notes": [],
                },
                "training": {"lr": 0.001},
                "precision": "fp32",
                "seed": seed,
                "status": "done",
                "score": {metric: value},
                "best": {"epoch": 1, "score": {metric: value}},
                "environment": {
                    "commit": None,
                    "dirty": None,
                    "python": "3.11",
                    "packages": {"torch": "2.9"},
                    "processor": "x",
                    "gpu": None,
                    "threads": 1,
                },
            }
            | changes
        )
        store = Store(self.path)
        store.write_record(record)
        if write and record.status == "done":
            rows = zip(truth.tolist(), predictions.tolist(), strict=True)
            lines = [{"index": i, "label": y, "prediction": p} for i, (y, p) in enumerate(rows)]
            atomic.write(store.predictions(record.cell), lines_of(lines))
        self.records.append(record)
        return record


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


@pytest.fixture
def cost() -> Callable[..., dict[str, Any]]:
    """What a record says of its cost."""

    def of(trained: int, mib: float, seconds: float, speed: float = 100.0) -> dict[str, Any]:
        return {
            "n_trainable": {"adapter": trained, "head": 0, "total": trained},
            "memory": {"peak_mib": mib, "train_peak_mib": None, "by_part": {}, "how": "made"},
            "speed": {
                "examples_per_s": speed,
                "tokens_per_s": None,
                "step_ms_p50": None,
                "step_ms_p95": None,
            },
            "total_s": seconds,
        }

    return of
