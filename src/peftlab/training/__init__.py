"""Training: batches, the loop, its checkpoint, guard, meters. Knows no method by name."""

from peftlab.engine import KERNELS, can_pack, kernels_of
from peftlab.training.batches import Batch, Encoded, encode
from peftlab.training.checkpoint import Checkpoint
from peftlab.training.guard import Diverged, Untrained, check_finite
from peftlab.training.loop import FitResult, Line, Loop, compute_outputs, fit, try_one_example
from peftlab.training.meters import MemoryMeter, SavedMeter
from peftlab.training.passes import Step, TrainingPlan, outputs
from peftlab.training.rehearsal import Rehearsal
from peftlab.training.repeatable import WORKSPACE, cublas_in_order, repeatable

__all__ = [
    "KERNELS",
    "WORKSPACE",
    "Batch",
    "Checkpoint",
    "Diverged",
    "Encoded",
    "FitResult",
    "Line",
    "Loop",
    "MemoryMeter",
    "Rehearsal",
    "SavedMeter",
    "Step",
    "TrainingPlan",
    "Untrained",
    "can_pack",
    "check_finite",
    "compute_outputs",
    "cublas_in_order",
    "encode",
    "fit",
    "kernels_of",
    "outputs",
    "repeatable",
    "try_one_example",
]
