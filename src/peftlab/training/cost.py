"""The memory that a training step will hold, counted on a model that has shapes and no numbers.

The model's tensors become torch's fake ones, which every operation takes and whose results are fake
again: the engine, the passes and the optimizer run as they are, in a fraction of a second for any
size. Live bytes are counted as storages come and go, each once; activations are counted by the same
meter as in a real training (meters.py).

Not seen: memory that an operation holds only inside itself, kernels, pages that the allocator
keeps, and the libraries' own code as it is read in.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from peftlab.engine import fast, model_tensors
from peftlab.engine.heap import LARGEST_ON_HEAP
from peftlab.engine.packing import rows_for
from peftlab.layers import Int8Linear, NF4Linear, PreTrainedModel, quantiser
from peftlab.layers.int8 import Way
from peftlab.training.batches import Batch, split_evenly
from peftlab.training.meters import MIB, SavedMeter, sizes
from peftlab.training.passes import Trainee, TrainingPlan, batch_loss, without_cache

_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "_linear_pointwise"}


@dataclass(frozen=True)
class Shape:
    """The shape of a part of a batch, as it goes through a model.

    Attributes:
        size: the number of examples.
        width: the number of tokens that each is padded to.
        tokens: how many tokens are computed in all; size · width unless they are packed.
        packed: whether they are packed.
    """

    size: int
    width: int
    tokens: int
    packed: bool = False

    @property
    def lengths(self) -> list[int]:
        """Lengths of the examples, as even as possible."""
        return split_evenly(self.tokens, self.size)

    @property
    def rows(self) -> int:
        """The number of rows of a layer's input."""
        return rows_for(self.tokens) if self.packed else self.tokens


class Kernels(NamedTuple):
    """How many products of different shapes in bf16 there are; a CPU makes a kernel for each."""

    of_rows: int  # in layers
    of_sentences: int  # in attention


@dataclass(frozen=True)
class StepCost:
    """The memory that a training holds, in MiB.

    Attributes:
        weights, adapters, gradients, optimizer: held throughout the training.
        activations: saved for the backward pass of the widest part of a batch.
        transient: the peak of a step beyond gradients and activations.
        evaluation: the peak of an evaluation's passes.
        kernels: those of a step.
        evaluation_kernels: those of a forward pass in evaluation.
    """

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    activations: float
    transient: float
    evaluation: float
    kernels: Kernels
    evaluation_kernels: Kernels


class LiveMeter(TorchDispatchMode):
    """Counts the live bytes of storages made inside it, and their peak.

    Inside the engine a CPU's heap is never given back, and storages larger than `LARGEST_ON_HEAP`
    lie beside it: the peaks of the two add up, even if they are of different moments.

    Args:
        excluded: tensors that exist anyway and do not count.
        device: the kind of device; only a CPU has such a heap.

    >>> with FakeTensorMode(), LiveMeter() as live:
    ...     x = torch.zeros(256, 1024)
    ...     del x
    ...     x = torch.zeros(128, 1024)
    >>> sum(live.now) / MIB, live.peak / MIB
    (0.5, 1.0)
    """

    def __init__(self, excluded: Iterable[Tensor] = (), device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = LARGEST_ON_HEAP if device == "cpu" else math.inf
        self.now, self.peaks = [0, 0], [0, 0]  # on the heap, and beside it
        self.products: set[tuple[Any, ...]] = set()
        # held, so that no new storage takes the address of one
        self.excluded = [tensor.untyped_storage() for tensor in excluded]
        self.tracked: dict[int, Any] = {storage._cdata: None for storage in self.excluded}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # half of all calls: a short cut
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._track(tensor)
        if func.overloadpacket.__name__ in _PRODUCTS:
            shapes = [(x.shape, x.stride()) for x in args if isinstance(x, Tensor)]
            if args[0].dtype == torch.bfloat16:
                self.products.add((func, *shapes))
        return result

    @property
    def kernels(self) -> Kernels:
        """The kernels that the products so far need."""
        n_bmm = sum(func is torch.ops.aten.bmm.default for func, *_ in self.products)
        return Kernels(len(self.products) - n_bmm, n_bmm)

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.tracked:
            return
        self.tracked[key] = weakref.ref(storage, lambda _: self._release(key, size))
        region = int(size > self.largest)
        self.now[region] += size
        self.peaks[region] = max(self.peaks[region], self.now[region])

    def _release(self, key: int, size: int) -> None:
        self.now[int(size > self.largest)] -= size
        del self.tracked[key]

    @property
    def peak(self) -> int:
        """The largest number of live bytes, heap and beside it."""
        return sum(self.peaks)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end: raised where a storage ends they would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: set[int] = set()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: held.add(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        if held:
            signal.raise_signal(max(held))  # SIGTERM, if both came


def count_step(
    model: PreTrainedModel,
    method: Trainee,
    plan: TrainingPlan,
    trained: Shape,
    evaluated: Shape,
    in_parts: bool = False,
) -> StepCost:
    """The memory that training `model` holds at these shapes. The model can't be used afterwards.

    Args:
        model: on the meta device, its tensors in their precisions, injected with `method`.
        method: decides which parameters are trained, and how.
        plan: the run's plan.
        trained: the widest part of a batch.
        evaluated: the widest batch of an evaluation.
        in_parts: whether a batch is taken in several parts, so that gradients of one are held
            during the next one's passes.

    Raises:
        Exception: any that a model or a method raises because it asks a tensor for a number.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    make_fake(model, mode, torch.device(plan.device_type))
    with _signals_held(), mode, without_cache(model):
        groups = method.parameter_groups(
            model, plan.settings.lr, plan.settings.head_lr, plan.settings.weight_decay
        )
        optimizer = method.make_optimizer(groups)
        with fast(model, plan.settings.fast, real=False) as layout:
            layout.lengths = evaluated.lengths
            evaluation = _measure_evaluation(model, plan, evaluated)
            model.train()
            layout.lengths = trained.lengths
            batch = _batch(trained, plan)
            parameters = [p for group in groups for p in group["params"]]
            excluded = [*model_tensors(model), *batch.inputs.values(), batch.labels]
            live = LiveMeter(excluded, plan.device_type)
            with live:
                if in_parts:
                    for parameter in parameters:
                        parameter.grad = torch.zeros_like(parameter)
                with SavedMeter(excluded) as saved:
                    loss = batch_loss(model, batch, plan)
                activations = saved.mib()
                loss.backward()
            kernels = live.kernels
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            sizes_mib = sizes(model, optimizer)
    gradients = sizes_mib["gradients"]
    return StepCost(
        **sizes_mib,
        activations=activations,
        # gradients are allocated while activations are freed, and don't fit into the gaps of those
        transient=max(0.0, live.peak / MIB - gradients - activations),
        evaluation=evaluation.peak / MIB,
        kernels=kernels,
        evaluation_kernels=evaluation.kernels,
    )


def _measure_evaluation(model: PreTrainedModel, plan: TrainingPlan, shape: Shape) -> LiveMeter:
    """A meter of a forward pass that saves nothing."""
    model.eval()
    batch = _batch(shape, plan)
    computing = torch.autocast(plan.device_type, torch.bfloat16, enabled=plan.autocast)
    live = LiveMeter(model_tensors(model), plan.device_type)
    with torch.no_grad(), computing, live:
        model(**batch.inputs)
    return live


def _batch(shape: Shape, plan: TrainingPlan) -> Batch:
    ids = torch.zeros(shape.size, shape.width, dtype=torch.long, device=plan.device_type)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, torch.zeros(shape.size, dtype=torch.long, device=plan.device_type))


def make_fake(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Make every tensor of `model` a fake one on `device`; shared ones stay shared."""
    fakes: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, NF4Linear):
            module.__dict__["dequantised"] = _Dequantised(module)
        if isinstance(module, Int8Linear) and device.type == "cpu":  # elsewhere by torch's own
            ways = module.packings(device.type)
            module.__class__ = _Int8Shapes
            fake_packed = {way: _as_fake(module.codes, mode, device) for way in ways}
            cast(_Int8Shapes, module).fake_packed = fake_packed
        for tensors in (cast(dict[str, Tensor | None], module._parameters), module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fakes.setdefault(id(tensor), _as_fake(tensor, mode, device))


def _as_fake(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    fake = FakeTensor(mode, tensor.detach().to("meta"), device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


class _Int8Shapes(Int8Linear):
    """`Int8Linear` whose products and packed copies of the codes are fake tensors."""

    fake_packed: dict[Way, Tensor]  # as large as the codes; in `packed` once a product has used it

    def _outputs(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._product("forward", x, self.out_features)

    def _gradients(self, g: Tensor) -> Tensor:
        return self._product("back", g, self.in_features)

    def _product(self, way: Way, x: Tensor, columns: int) -> Tensor:
        if way in self.fake_packed:
            self.packed[way] = self.fake_packed[way]
        codes = x.new_empty(x.shape, dtype=torch.int8)
        y = x.new_empty(len(x), columns)
        del codes
        return y

    @classmethod
    def stacked(cls, layers: Sequence[Int8Linear]) -> Int8Linear:
        stacked = cast(_Int8Shapes, super().stacked(layers))
        stacked.fake_packed = {
            way: torch.empty_like(stacked.codes) for way in cast(_Int8Shapes, layers[0]).fake_packed
        }
        return stacked


class _Dequantised:
    """Stands in for `NF4Linear.dequantised`, which looks numbers up in tables."""

    def __init__(self, layer: NF4Linear) -> None:
        self.layer = layer
        self.in_fp32 = quantiser("nf4") == "peftlab"  # computes there, block by block

    def __call__(self, dtype: torch.dtype) -> Tensor:
        shape = (self.layer.out_features, self.layer.in_features)
        device = self.layer.get_buffer("codes").device
        exact = torch.empty(shape, device=device) if self.in_fp32 else None
        dense = torch.empty(shape, dtype=dtype, device=device)
        del exact
        return dense
