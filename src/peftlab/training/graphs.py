"""CUDA graphs: the forward and backward pass over a batch of a recurring shape, as one launch.

A small model's pass is a thousand kernels of some µs each, and Python takes longer than that to
launch one. A graph is a pass recorded once: the next batch of that shape (batches.py makes few) is
copied to the tensors of the recorded one, and its gradients are added to those that are there.

    a shape's first passes    run as without graphs, which also initialises the libraries
    pass `CAPTURED_AT`        captured, which computes nothing, and then replayed
    from then on              replayed

The widest part of a batch is captured before the first step. So a model that can't be captured
(DeBERTa's second version makes tensors on the host) is refused there, and a lack of memory shows.
A replay runs the same operations on the same tensors in every step. So the loop excludes methods
that do something before a step (DyLoRA draws a rank), and gradients are set to zero, not freed.
Dropout masks still differ between steps, since a replay reads the generator's seed. Graphs share
one memory pool: the loss that one leaves there is read before another runs.

Off unless asked for: written after torch's notes on CUDA semantics (whole-network capture) without
a CUDA device, so it has been run on none, and its gain is not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peftlab.errors import RequestError, one_line
from peftlab.training.batches import Batch

CAPTURED_AT = 4  # the pass of a shape that is captured: torch's notes ask for three before
# forward and backward: takes a batch and its loss's weight, returns its mean loss, detached
Pass = Callable[[Batch, Tensor], Tensor]
Shape = tuple[tuple[str, torch.Size], ...]


class Recording(NamedTuple):
    """One captured pass: the tensors that it reads, the loss that it writes, how to replay it."""

    static_inputs: list[Tensor]
    loss: Tensor
    replay: Callable[[], None]


class Graphs:
    """The graphs of one pass on one CUDA device, by the shape of a batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.n_passes: Counter[Shape] = Counter()
        self.recordings: dict[Shape, Recording] = {}
        self.shared: Any = None  # the memory pool and stream of the first capture

    def __call__(self, run_pass: Pass, batch: Batch, weight: Tensor) -> Tensor:
        """The batch's mean loss; the gradients of `weight` times it are added.

        Args:
            run_pass: the pass, the same in each call. It may read no number of a tensor, copy
                nothing from the host, and must add to gradients that are there.
            batch: on the device.
            weight: the weight of the batch's loss; a number on the device.

        Raises:
            RequestError: if the pass can't be captured.
        """
        shape = tuple((name, tensor.shape) for name, tensor in batch.inputs.items())
        self.n_passes[shape] += 1
        if self.n_passes[shape] < CAPTURED_AT:
            return run_pass(batch, weight)
        if shape not in self.recordings:
            self.recordings[shape] = self._record(run_pass, batch, weight)
        recording = self.recordings[shape]
        torch._foreach_copy_(recording.static_inputs, _tensors(batch, weight))
        recording.replay()
        return recording.loss.clone()  # the next graph may overwrite it

    def _record(self, run_pass: Pass, batch: Batch, weight: Tensor) -> Recording:
        static_inputs = [tensor.clone() for tensor in _tensors(batch, weight)]
        *inputs, labels, static_weight = static_inputs
        static_batch = Batch(dict(zip(batch.inputs, inputs, strict=True)), labels)
        try:
            loss, replay, self.shared = capture(
                lambda: run_pass(static_batch, static_weight), self.shared, self.device
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # raised as the capture ends; its cause was raised before
            cause = one_line(error.__context__ or error)
            raise RequestError(
                f"the model can't be captured as a CUDA graph ({cause}); train without --graphs"
            ) from error
        return Recording(static_inputs, loss, replay)


def _tensors(batch: Batch, weight: Tensor) -> list[Tensor]:
    return [*batch.inputs.values(), batch.labels, weight]


def capture(
    work: Callable[[], Tensor], shared: Any, device: torch.device
) -> tuple[Tensor, Callable[[], None], Any]:
    """Record the CUDA operations of `work` without executing them.

    `shared` is the memory pool and the stream of the first capture, None for that one itself.
    Returns the tensor of the result, the function that replays the pass, and pool and stream.
    """
    graph = torch.cuda.CUDAGraph()
    pool, stream = shared or (None, torch.cuda.Stream(device))
    outside = torch.cuda.current_stream(device)
    with torch.cuda.device(device):  # setting a stream makes its device the current one
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                result = work()
        finally:
            torch.cuda.set_stream(outside)  # a capture that failed leaves its own stream set
    return result, graph.replay, (graph.pool(), stream)
