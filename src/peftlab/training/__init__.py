"""Training: batches, the loop, optimizer and schedule, guard, meters. Knows no method by name."""

from peftlab.training.batches import Batch, Encoded, encode
from peftlab.training.guard import Diverged, Untrained
from peftlab.training.loop import Fitted, Loop, Plan, Rehearsal, fit, outputs
from peftlab.training.meters import Memory, MemoryMeter, SavedMeter, SpeedMeter

__all__ = [
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
]
