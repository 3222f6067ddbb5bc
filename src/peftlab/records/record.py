"""The record of one cell: its request, its results, and its environment. One JSON file a cell.

Numbers carry their unit in their name; what was not measured is null, never 0; scores are
fractions. The report reads records and nothing else, so this file imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from peftlab.labels import Kind

SCHEMA_VERSION = 1


class _Part(BaseModel, extra="forbid", frozen=True):
    """A part of the record; it takes no unknown fields and does not change."""


class ModelPart(_Part):
    name: str
    revision: str | None  # the hub's commit; null for a folder or a packaged model
    sha256: str | None  # of the weights' files; null for a model object that was handed over


class TaskPart(_Part):
    name: str
    kind: Kind
    main_metric: str
    source: str
    licence: str | None = None  # of the data, in its source's words; null where that names none
    n_train: int
    n_dev: int
    n_truncated: int | None  # examples of both splits cut at max_length; null before tokenising
    sha256: str  # of the examples
    # sha256 of the task that these few were drawn from (`--repeat-speed`); null for a whole task
    drawn_from: str | None = None
    labels: list[str] = []  # the classes' names, in the order of the outputs
    # scores by baseline (constant, tf-idf) and metric; empty where they were not computed
    baselines: dict[str, dict[str, float]] = {}


class MethodPart(_Part):
    name: str
    label: str  # the table's row: the name, or the variant's own label
    settings: dict[str, Any]
    targets: list[str]  # patterns of the names of adapted modules; empty where there are none
    notes: list[str]  # for the reader, such as that of a fused projection
    rate_from: str = ""  # "default", "asked for" or "tuned"; empty in records that don't say
    tuned: dict[str, Any] = {}  # the search for settings: trials, validation, space; or empty
    source_sha256: str | None = None  # of the code of a user's own method; null for peftlab's


class Best(_Part):
    """The best epoch by the task's main metric. Chosen on dev: optimistic, shown apart."""

    epoch: int
    score: dict[str, float]


class Trainable(_Part):
    adapter: int
    head: int
    total: int


class Speed(_Part):
    """The speed of training steps, without the first ones and without evaluation."""

    examples_per_s: float | None
    tokens_per_s: float | None
    step_ms_p50: float | None
    step_ms_p95: float | None
    # of one core, used by other processes just before; null where that was not measured
    others_share: float | None = None
    turn: str | None = None  # the round of a short cell; all rows of a command take a turn in it


class Memory(_Part):
    peak_mib: float | None  # the whole process
    train_peak_mib: float | None  # above what was resident just before the model was loaded
    # MiB of weights, adapters, gradients, optimizer, activations, and the rest of training's peak
    by_part: dict[str, float | None]
    how: str


class Environment(_Part):
    commit: str | None  # peftlab's own; null when installed from a package
    dirty: bool | None
    python: str
    packages: dict[str, str]
    processor: str
    gpu: str | None
    threads: int
    spin_count: str | None = None  # GOMP_SPINCOUNT, else OMP_WAIT_POLICY; null if neither is set
    quantiser: str | None = None  # of a base in four or eight bits: see layers.quantiser
    # the engine's in C++, or torch; null where nothing was trained; once called attention
    kernels: str | None = Field(None, validation_alias=AliasChoices("kernels", "attention"))


class Failure(_Part):
    kind: str
    message: str


class Record(_Part):
    """One cell's run. `score` is the last epoch's; a failed cell has `failure` instead."""

    schema_version: int = SCHEMA_VERSION
    # MODEL-TASK-METHOD-sSEED-HASH8, also the stem of the cell's files, so never a path
    cell: str = Field(pattern=r"^[^/\\]+$")
    suite: str
    model: ModelPart
    task: TaskPart
    method: MethodPart
    training: dict[str, Any]  # all resolved: epochs, batch_size, lr, head_lr, ...
    precision: str  # how the base was held: fp32, bf16, or what it was quantised to
    seed: int
    status: Literal["done", "failed"]
    score: dict[str, float] | None = None
    best: Best | None = None
    score_by_rank: dict[str, dict[str, float]] | None = None
    warnings: list[str] = []  # facts that the score hides, such as a class that is never predicted
    n_trainable: Trainable | None = None
    speed: Speed | None = None
    memory: Memory | None = None
    parts: float | None = None  # mean number of parts that a batch was split into
    prepare_s: float | None = None
    train_s: float | None = None
    eval_s: float | None = None
    total_s: float | None = None
    environment: Environment
    failure: Failure | None = None
    side: str = ""  # the folder that it is from, where several were laid side by side

    @property
    def is_done(self) -> bool:
        """Whether the cell was trained and scored; else it failed."""
        return self.status == "done"

    def __repr__(self) -> str:
        metric = self.task.main_metric
        score = (self.score or {}).get(metric)
        result = "no score" if score is None else f"{metric} {score:.3f}"
        return f"<Record {self.cell}: {self.failure.kind if self.failure else result}>"

    __str__ = __repr__
