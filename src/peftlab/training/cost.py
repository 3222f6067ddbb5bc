"""What a step of training will hold, counted on a model that has shapes and no numbers.

The model's tensors become torch's fake ones, which every operation takes and whose results are
shapes again: the engine, the passes and the optimizer run as they are, in a fraction of a second
for any size. Live bytes are counted as storages come and go, each once, and what is saved for the
backward pass by the meter that a training has too (meters.py).

What an operation holds only inside itself is not seen, nor are kernels, pages that the allocator
keeps, or the libraries' own code as it is read in.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from peftlab.engine import fast, own_tensors
from peftlab.engine.heap import LARGEST_ON_HEAP
from peftlab.engine.packing import rows_for
from peftlab.layers import Int8Linear, NF4Linear, PreTrainedModel, quantiser
from peftlab.layers.int8 import Way
from peftlab.training.batches import Batch, evenly
from peftlab.training.meters import MIB, SavedMeter, sizes
from peftlab.training.passes import Plan, Trainee, batch_loss

_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "_linear_pointwise"}


@dataclass(frozen=True)
class Shape:
    """Of what goes through a model at once.

    Attributes:
        size: its examples.
        width: tokens that each is padded to.
        tokens: that are computed, all in all; size · width unless they are packed.
        packed: whether they are.
    """

    size: int
    width: int
    tokens: int
    packed: bool = False

    @property
    def lengths(self) -> list[int]:
        """Of the examples, as even as can be."""
        return evenly(self.tokens, self.size)

    @property
    def rows(self) -> int:
        """What a layer gets."""
        return rows_for(self.tokens) if self.packed else self.tokens


class Kernels(NamedTuple):
    """Products of different shapes in bf16, for each of which a CPU makes a kernel."""

    of_rows: int  # of a layer
    of_sentences: int  # of attention


@dataclass(frozen=True)
class Counted:
    """What a training holds, in MiB.

    Attributes:
        weights, adapters, gradients, optimizer: of these sizes as long as training goes on.
        activations: saved for the backward pass of the widest part of a batch.
        transient: the most that a step holds beyond gradients and activations.
        evaluation: the most that the passes of an evaluation hold.
        kernels: of a step.
        evaluation_kernels: of a forward pass where nothing is saved.
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
    """Counts the bytes of what is made inside it and still there, and the most they have been.

    Inside the engine a CPU's heap is never given back, and what is larger than `LARGEST_ON_HEAP`
    lies beside it: the peaks of the two add up, though they may be of different moments.

    Args:
        own: what is there anyway and does not count.
        device: where it is; only a CPU has such a heap.

    >>> with FakeTensorMode(), LiveMeter() as live:
    ...     x = torch.zeros(256, 1024)
    ...     del x
    ...     x = torch.zeros(128, 1024)
    >>> sum(live.now) / MIB, live.peak / MIB
    (0.5, 1.0)
    """

    def __init__(self, own: Iterable[Tensor] = (), device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = LARGEST_ON_HEAP if device == "cpu" else math.inf
        self.now, self.peaks = [0, 0], [0, 0]  # on the heap, and beside it
        self.products: set[tuple[Any, ...]] = set()
        self.own = [tensor.untyped_storage() for tensor in own]  # held, so that no other is there
        self.known: dict[int, Any] = {storage._cdata: None for storage in self.own}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # half of all calls
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        if func.overloadpacket.__name__ in _PRODUCTS:
            shapes = [(x.shape, x.stride()) for x in args if isinstance(x, Tensor)]
            if args[0].dtype == torch.bfloat16:
                self.products.add((func, *shapes))
        return result

    @property
    def kernels(self) -> Kernels:
        """Those that the products so far need."""
        n_bmm = sum(func is torch.ops.aten.bmm.default for func, *_ in self.products)
        return Kernels(len(self.products) - n_bmm, n_bmm)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        place = int(size > self.largest)
        self.now[place] += size
        self.peaks[place] = max(self.peaks[place], self.now[place])

    def _drop(self, key: int, size: int) -> None:
        self.now[int(size > self.largest)] -= size
        del self.known[key]

    @property
    def peak(self) -> int:
        """The most bytes that are there at once."""
        return sum(self.peaks)


def count_step(
    model: PreTrainedModel,
    method: Trainee,
    plan: Plan,
    trained: Shape,
    evaluated: Shape,
    in_parts: bool = False,
) -> Counted:
    """What training `model` holds at these shapes. The model is of no use for anything else then.

    Args:
        model: on the meta device, its tensors in their precisions, injected with `method`.
        method: what is trained.
        plan: of the run.
        trained: the widest part of a batch.
        evaluated: the widest batch of an evaluation.
        in_parts: whether a batch is taken in several parts, so that gradients of one are there
            while the next is passed.

    Raises:
        Exception: whatever a model or a method raises that asks for a number.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _become_fake(model, mode, torch.device(plan.device_type))
    with mode:
        groups = method.parameter_groups(
            model, plan.settings.lr, plan.settings.head_lr, plan.settings.weight_decay
        )
        optimizer = method.make_optimizer(groups)
        with fast(model, plan.settings.fast, real=False) as laid:
            laid.lengths = evaluated.lengths
            answered = _evaluated(model, plan, evaluated)
            model.train()
            laid.lengths = trained.lengths
            batch = _batch(model, trained, plan)
            parameters = [p for group in groups for p in group["params"]]
            own = [*own_tensors(model), *batch.inputs.values(), batch.labels]
            live = LiveMeter(own, plan.device_type)
            with live:
                if in_parts:
                    for parameter in parameters:
                        parameter.grad = torch.zeros_like(parameter)
                with SavedMeter(own) as saved:
                    loss = batch_loss(model, batch, plan)
                activations = saved.mib()
                loss.backward()
            kernels = live.kernels
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            held = sizes(model, optimizer)
    gradients = held["gradients"]
    return Counted(
        **held,
        activations=activations,
        # gradients that grow while activations go don't fit into the gaps that those leave
        transient=max(0.0, live.peak / MIB - gradients - activations),
        evaluation=answered.peak / MIB,
        kernels=kernels,
        evaluation_kernels=answered.kernels,
    )


def _evaluated(model: PreTrainedModel, plan: Plan, shape: Shape) -> LiveMeter:
    """What a forward pass holds where nothing is saved."""
    model.eval()
    batch = _batch(model, shape, plan)
    computing = torch.autocast(plan.device_type, torch.bfloat16, enabled=plan.autocast)
    live = LiveMeter(own_tensors(model), plan.device_type)
    with torch.no_grad(), computing, live:
        model(**batch.inputs)
    return live


def _batch(model: PreTrainedModel, shape: Shape, plan: Plan) -> Batch:
    ids = torch.zeros(shape.size, shape.width, dtype=torch.long, device=plan.device_type)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, torch.zeros(shape.size, dtype=torch.long, device=plan.device_type))


def _become_fake(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Let every tensor of `model` pass for one on `device`; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, NF4Linear):
            module.__dict__["dequantised"] = _Dequantised(module)
        if isinstance(module, Int8Linear):
            ways = module.packings(device.type)
            module.__class__ = _Int8Shapes
            ready = {way: _fake(module.codes, mode, device) for way in ways}
            cast(_Int8Shapes, module).ready = ready
        for tensors in (cast(dict[str, Tensor | None], module._parameters), module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = made.setdefault(id(tensor), _fake(tensor, mode, device))


def _fake(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    fake = FakeTensor(mode, tensor.detach().to("meta"), device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


class _Int8Shapes(Int8Linear):
    """`Int8Linear` with products that have only shapes, and those of all that is made of it."""

    ready: dict[Way, Tensor]  # as large as the codes, packed where a product is asked for

    def _outputs(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._made("forward", x, self.out_features)

    def _gradients(self, g: Tensor) -> Tensor:
        return self._made("back", g, self.in_features)

    def _made(self, way: Way, x: Tensor, columns: int) -> Tensor:
        if way in self.ready:
            self.packed[way] = self.ready[way]
        codes = x.new_empty(x.shape, dtype=torch.int8)
        made = x.new_empty(len(x), columns)
        del codes
        return made

    @classmethod
    def stacked(cls, layers: Sequence[Int8Linear]) -> Int8Linear:
        made = cast(_Int8Shapes, super().stacked(layers))
        made.ready = {
            way: torch.empty_like(made.codes) for way in cast(_Int8Shapes, layers[0]).ready
        }
        return made


class _Dequantised:
    """In the place of `NF4Linear.dequantised`, which reads tables that only numbers have."""

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
