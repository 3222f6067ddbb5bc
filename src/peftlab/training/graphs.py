"""CUDA graphs: a pass forward and back over a batch of a shape that was met before, as one launch.

A small model's pass is a thousand kernels of some µs each, and Python takes longer than that to
launch one. A graph is a pass recorded once: the next batch of that shape (batches.py makes few) is
copied to where the recorded one lay, and its gradients are added to those that are there.

    a shape's first passes    as without graphs, which also makes the libraries ready
    pass `CAPTURED_AT`        captured, by which nothing is computed, and then replayed
    from then on              replayed

The widest part of a batch is captured before the first step, so that a model that can't be
(DeBERTa's second version makes tensors on the host) is refused there, and what doesn't fit shows.
What is replayed makes the same operations on the same tensors in every step: the loop leaves out
methods that do something before a step (DyLoRA draws a rank), and gradients are set to zero, not
freed. Masks of dropout are each step's own all the same: a replay reads the generator's seed.
Graphs share one pool of memory: what one leaves there is read before another runs.

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

CAPTURED_AT = 4  # of a shape's passes; torch's notes ask for three before a capture
# forward and backward: a batch and what its loss counts, to its mean loss, which has no graph
Pass = Callable[[Batch, Tensor], Tensor]
Shape = tuple[tuple[str, torch.Size], ...]


class Recorded(NamedTuple):
    """One captured pass: what it reads, what it writes beside gradients, and how it is run."""

    reads: list[Tensor]
    loss: Tensor
    replay: Callable[[], None]


class Graphs:
    """The graphs of one pass on one CUDA device, by the shape of a batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.met: Counter[Shape] = Counter()
        self.recorded: dict[Shape, Recorded] = {}
        self.shared: Any = None  # of the first capture

    def __call__(self, run: Pass, batch: Batch, weight: Tensor) -> Tensor:
        """The batch's mean loss; the gradients of `weight` times it are added.

        Args:
            run: the pass, the same in each call. It may read no number of a tensor, copy nothing
                from the host, and must add to gradients that are there.
            batch: on the device.
            weight: what the batch's loss counts; a number on the device.

        Raises:
            RequestError: if the pass can't be captured.
        """
        shape = tuple((name, tensor.shape) for name, tensor in batch.inputs.items())
        self.met[shape] += 1
        if self.met[shape] < CAPTURED_AT:
            return run(batch, weight)
        if shape not in self.recorded:
            self.recorded[shape] = self._record(run, batch, weight)
        own = self.recorded[shape]
        torch._foreach_copy_(own.reads, [*batch.inputs.values(), batch.labels, weight])
        own.replay()
        return own.loss.clone()  # the next graph may write where this one's lies

    def _record(self, run: Pass, batch: Batch, weight: Tensor) -> Recorded:
        reads = [tensor.clone() for tensor in (*batch.inputs.values(), batch.labels, weight)]
        *inputs, labels, counts = reads
        own = Batch(dict(zip(batch.inputs, inputs, strict=True)), labels)
        try:
            loss, replay, self.shared = captured(lambda: run(own, counts), self.shared, self.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of the capture's end; what ended it came before
            why = one_line(error.__context__ or error)
            raise RequestError(
                f"the model can't be captured as a CUDA graph ({why}); train without --graphs"
            ) from error
        return Recorded(reads, loss, replay)


def captured(
    work: Callable[[], Tensor], shared: Any, device: torch.device
) -> tuple[Tensor, Callable[[], None], Any]:
    """`work`, recorded and not done: where its result will lie, what does it, what others share.

    That is the pool and the stream; None for the first one.
    """
    graph = torch.cuda.CUDAGraph()
    pool, stream = shared or (None, torch.cuda.Stream(device))
    outside = torch.cuda.current_stream(device)
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=stream):
            result = work()
    finally:
        torch.cuda.set_stream(outside)  # which a capture that failed has not left
    return result, graph.replay, (graph.pool(), stream)
