"""The models, tasks and sizes of every section, and the floors that its ratios are held to.

`examples` are those of an epoch; the second one is timed: 5 to 20 s on two cores of 2024. They are
so many that batches of like lengths pad as little as on all of the task (peer.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Floor:
    """A bound on a ratio, from below or from above."""

    value: float
    at_most: bool = False

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.value if self.at_most else ratio >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}"


@dataclass(frozen=True)
class Setting:
    """LoRA on one model and task, with `examples` an epoch."""

    model: str
    task: str
    examples: int
    speed: Floor | None = None  # ours over the peer's fastest settings, whatever they score
    learns: Floor | None = None  # ours over its fastest that score as its defaults do
    defaults: Floor | None = None  # ours over the peer at its defaults
    with_defaults: bool = False

    @property
    def name(self) -> str:
        return f"{Path(self.model).name.removesuffix('-base')}/{self.task}"


LORA = [
    Setting("roberta-base", "cola", 960, Floor(1.9), Floor(2.2), Floor(6.5), True),
    Setting("minilm", "cola", 1600, Floor(1.9), Floor(2.2)),
    Setting("roberta-base", "mrpc", 448, Floor(1.9), Floor(2.2)),
    Setting("mpnet-base", "cola", 960, Floor(1.5)),
    Setting("distilbert-base", "cola", 960, Floor(1.5)),
]
PROBE_EXAMPLES, SLOW = 32, 0.5  # a precision at most half as fast as the fastest isn't run
ATTEMPTS, DISTURBED = 3, 0.1  # a process runs again if others took a tenth of the machine
# by field of a line: our memory over the least that the peer needs
MEMORY: dict[str, tuple[str, Floor | None]] = {
    "peak_mib": ("peak memory", None),
    "all_mib": ("with its other processes", Floor(0.75, at_most=True)),
    "above_mib": ("above resident", Floor(0.7, at_most=True)),
}

# a method's step time over LoRA's, and the options of its process beside its name
METHODS: dict[str, tuple[Floor | None, dict[str, str]]] = {
    "dora": (Floor(1.15, at_most=True), {}),
    "vera": (Floor(1.15, at_most=True), {}),
    "lora-fa": (Floor(1.0, at_most=True), {}),
    "dylora": (Floor(1.05, at_most=True), {}),
    "lora-drop": (Floor(1.05, at_most=True), {}),
    "lora-plus": (Floor(1.05, at_most=True), {}),
    "lora, nf4": (Floor(1.5, at_most=True), {"method": "lora", "precision": "nf4"}),
    "full": (None, {}),
}
METHOD_EXAMPLES = 480
FULL, FULL_EXAMPLES = Floor(1.2), 960  # full fine-tuning, ours over the peer's best
PRODUCTS, PRODUCT_EXAMPLES = Floor(0.42), 640  # the products' share of our step

INT8: dict[str, Floor | None] = {"roberta-base": Floor(1.2), "minilm": None}  # over ours in auto
INT8_EXAMPLES = 480

GROWTH_EXAMPLES = (1600, 3200)
GROWTH = Floor(1.05, at_most=True)  # time a token, twice the examples over once
FLAT = Floor(1.02, at_most=True)  # peak resident memory, second half of the steps over the first

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
BATCHES = {8: (8, 32, 128, 512), 32: LENGTHS, 128: (8, 32, 128, 512)}  # batch size: lengths
TOKENS = 16_384  # in an epoch, which has one batch at least
MEMORY_SHARE = 0.8  # of the available memory, which a process may need
DOMINATES = 0.5  # attention's share of the time

SCORED, SCORED_TASKS, SCORE_SEEDS = "minilm", ("stsb", "mrpc"), (0, 1, 2)
SCORE_EPOCHS, SCORE_LR = 3, 1e-3
