"""CUDA graphs: a pass forward and back over a batch of a shape that was met before, as one launch.

A small model's pass is a thousand kernels of some µs each, and Python takes longer than that to
launch one. A graph is a pass recorded once: the next batch of that shape (batches.py makes few) is
copied to where the recorded one lay, and its gradients are added to those that are there.

    a shape's first passes    as without graphs, which also makes the libraries ready
    pass `MET`                captured, by which nothing is computed, and then replayed
    from then on              replayed

What is replayed makes the same operations in every step: the loop leaves out methods that do
something before a step (DyLoRA draws a rank). Masks of dropout are each step's own all the same:
a replay reads the generator's seed. Graphs share one pool of memory, since one runs at a time.

Off unless asked for: written after torch's notes on CUDA semantics (whole-network capture) where no
CUDA device was, so it has been run on none, and what it gains is not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peftlab.errors import RequestError, one_line
from peftlab.training.batches import Batch

MET = 4  # passes of a shape; torch's notes ask for three before a capture
# forward and backward: a batch and what its loss counts, to its mean loss, which has no graph
Pass = Callable[[Batch, Tensor], Tensor]
Shape = tuple[tuple[str, torch.Size], ...]


class Recorded(NamedTuple):
    """One captured pass: what it reads, what it writes beside gradients, and how it is run."""

    reads: list[Tensor]
    loss: Tensor
    replay: Callable[[], None]


class Graphs:
    """A pass that is captured for each shape of a batch, and called as the pass itself is.

    Args:
        run: the pass. It may read no number of a tensor, copy nothing from the host, and must add
            to gradients that are there.
        place: the CUDA device.
    """

    def __init__(self, run: Pass, place: torch.device) -> None:
        self.run, self.place = run, place
        self.met: Counter[Shape] = Counter()
        self.recorded: dict[Shape, Recorded] = {}
        self.pool: Any = None  # of the first graph, which the others share

    def __call__(self, batch: Batch, weight: Tensor) -> Tensor:
        """The batch's mean loss; the gradients of `weight` times it are added.

        Raises:
            RequestError: if the pass can't be captured.
        """
        shape = tuple((name, tensor.shape) for name, tensor in batch.inputs.items())
        self.met[shape] += 1
        if self.met[shape] < MET:
            return self.run(batch, weight)
        if shape not in self.recorded:
            self.recorded[shape] = self._record(batch, weight)
        own = self.recorded[shape]
        torch._foreach_copy_(own.reads, [*batch.inputs.values(), batch.labels, weight])
        own.replay()
        return own.loss.clone()

    def _record(self, batch: Batch, weight: Tensor) -> Recorded:
        reads = [tensor.clone() for tensor in (*batch.inputs.values(), batch.labels, weight)]
        *inputs, labels, counts = reads
        own = Batch(dict(zip(batch.inputs, inputs, strict=True)), labels)
        try:
            loss, replay, self.pool = captured(lambda: self.run(own, counts), self.pool, self.place)
        except RuntimeError as error:
            raise RequestError(
                f"the model can't be captured as a CUDA graph ({one_line(error)}); train without "
                "--graphs"
            ) from error
        return Recorded(reads, loss, replay)


def captured(
    work: Callable[[], Tensor], pool: Any, place: torch.device
) -> tuple[Tensor, Callable[[], None], Any]:
    """`work`, recorded and not done: where its result will lie, what does it, its pool."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(place), torch.cuda.graph(graph, pool=pool):
        result = work()
    return result, graph.replay, graph.pool()
