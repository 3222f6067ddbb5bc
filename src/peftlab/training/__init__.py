"""Training: batches, the loop, optimizer and schedule, guard, meters. Knows no method by name."""

from peftlab.training.batches import Encoded, encode
from peftlab.training.guard import Diverged
from peftlab.training.loop import Fitted, Loop, Plan, fit, outputs
from peftlab.training.meters import Memory, MemoryMeter, SpeedMeter

__all__ = [
    "Diverged",
    "Encoded",
    "Fitted",
    "Loop",
    "Memory",
    "MemoryMeter",
    "Plan",
    "SpeedMeter",
    "encode",
    "fit",
    "outputs",
]
