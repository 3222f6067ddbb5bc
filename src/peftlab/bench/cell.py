"""A cell: model × task × method with settings × seed, everything resolved.

A cell's identity is a hash of everything that was asked, so a changed setting makes another cell,
and a done cell is never run again. Package versions and the machine are no part of the identity.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from peftlab.bench.own_method import OwnMethod
from peftlab.layers import Precision
from peftlab.machine import environment
from peftlab.models import Source
from peftlab.naming import slug, title
from peftlab.records.record import SCHEMA_VERSION, Environment, MethodPart, ModelPart, TaskPart
from peftlab.settings import Resolved


class Cell(BaseModel, extra="forbid", frozen=True):
    """One training with every setting decided, as a process of its own runs it."""

    suite: str
    model: ModelPart
    model_folder: Path
    model_type: str
    task: TaskPart
    method: MethodPart
    training: Resolved
    precision: Precision
    seed: int
    own: OwnMethod | None = None  # the class of a method that is not peftlab's

    @property
    def source(self) -> Source:
        """The base, as `peftlab.models.find` returned it."""
        return Source(
            name=self.model.name,
            folder=self.model_folder,
            revision=self.model.revision,
            sha256=self.model.sha256 or "",
            model_type=self.model_type,
        )

    @property
    def row(self) -> tuple[str, str]:
        """The task and the method's label: the row of the table, which all seeds share."""
        return self.task.name, self.method.label

    @property
    def record_fields(self) -> dict[str, Any]:
        """The fields of this cell's record that say what was asked."""
        return {
            "cell": self.name,
            "suite": self.suite,
            "model": self.model,
            "task": self.task,
            "method": self.method,
            "training": self.training.model_dump() | self._compute,
            "precision": self.precision.base,
            "seed": self.seed,
        }

    @property
    def identity(self) -> str:
        """SHA-256 of all that was asked."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "model": self.model.sha256,
            "task": self.task.sha256,
            # the hash of a user's own method, and how a tuned row's settings were found: a tuned
            # row is another cell even where trials chose the default rate
            "method": [
                *(self.method.name, self.method.settings),
                *filter(None, (self.method.source_sha256, self.method.tuned)),
            ],
            "training": self.training.identity | self._compute,
            "precision": self.precision.base,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def _compute(self) -> dict[str, str]:
        """The precision that products are computed in, as a record's `training` has it."""
        return {"compute": self.precision.compute}

    def environment(self, index: int | None = None, kernels: str | None = None) -> Environment:
        """The environment of this process, in which the cell runs; see `machine.environment`."""
        training = self.training
        return environment(training.threads, self.precision.base, training.device, index, kernels)

    @property
    def name(self) -> str:
        """MODEL-TASK-METHOD-sSEED-HASH8, the stem of the cell's files."""
        parts = [self.model.name, self.task.name, self.method.name]
        readable = "-".join(slug(part)[:60] for part in parts)
        return f"{readable}-s{self.seed}-{self.identity[:8]}"

    @property
    def title(self) -> str:
        """The cell's name in progress and messages."""
        return title(self.task.name, self.method.label, self.seed)


class Order(BaseModel, extra="forbid", frozen=True):
    """A cell to run, and the files that it reads and writes.

    Attributes:
        cell: the cell.
        task_file: its task, as `Task.write` wrote it; tokens are kept beside it.
        adapter: the folder to save the adapter to, if it is to be kept.
        checkpoint: the file that the training is saved to as it goes, if it is; a training that was
            stopped goes on from there.
    """

    cell: Cell
    task_file: Path
    adapter: Path | None = None
    checkpoint: Path | None = None
