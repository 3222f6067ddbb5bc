"""Training: batches, the loop, optimizer and schedule, guard, meters. Knows no method by name."""

from peftlab.training.batches import Batch, Encoded, encode
from peftlab.training.guard import Diverged, Untrained
from peftlab.training.loop import Fitted, Loop, Plan, fit, outputs, try_one
from peftlab.training.meters import Memory, MemoryMeter, SavedMeter, SpeedMeter
from peftlab.training.rehearsal import Rehearsal
from peftlab.training.repeatable import WORKSPACE, repeatable

__all__ = [
    "WORKSPACE",
    "Batch",
    "Diverged",
    "Encoded",
    "Fitted",
    "Loop",
    "Memory",
    "MemoryMeter",
    "Plan",
    "Rehearsal",
    "SavedMeter",
    "SpeedMeter",
    "Untrained",
    "encode",
    "fit",
    "outputs",
    "repeatable",
    "try_one",
]
