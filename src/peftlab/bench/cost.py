"""What the cells of a grid will cost, before one of them trains: memory, disk, trained parameters.

    weights · adapters · gradients · optimizer    exactly, on the injected structure
    activations                                   exactly, for the widest part of a batch
    rest                                          the passes' own working memory, counted; on a CPU
                                                  also kernels and libraries' code, of the sizes
                                                  that were measured (docs/plan.md)

The peak is a record's `train_peak_mib`: memory above what was resident before the model was
loaded. It is None where it can't be counted, as for a model whose code reads tensors' values.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import torch

from peftlab.bench.cell import Cell
from peftlab.bench.execute import MOST_KERNELS
from peftlab.bench.grid import Grid
from peftlab.bench.process import activation_checkpointing, count, make_plan
from peftlab.bench.tokens import Tokens
from peftlab.errors import one_line
from peftlab.layers import Precision, adapter_state, quantiser
from peftlab.layers.precision import DTYPES
from peftlab.machine import threads_for
from peftlab.methods import Method, Prepared, inject, make
from peftlab.models import (
    empty_model,
    linear_names,
    load_tokenizer,
    sized_model,
    stored_dtype,
)
from peftlab.records.record import Trainable
from peftlab.settings import Resolved
from peftlab.tasks import Examples, Task
from peftlab.training import Encoded, Rehearsal, TrainingPlan, can_pack, encode
from peftlab.training.batches import batches_by_length
from peftlab.training.cost import Kernels, Shape, StepCost, count_step
from peftlab.training.meters import MIB
from peftlab.training.passes import EVALUATED_TOKENS, n_parts, n_tokens, parts_in, widest

TOKENISED = 2000  # texts of a split; the lengths of any others follow from their letters
LONGEST = 200  # of those are the longest texts, since the widest batch is made of them
NO_LIMIT = 2**31 - 1  # tokens: no text is cut
# Components of the part `rest` of a CPU's peak, measured (docs/plan.md): libraries' code as it is
# first run, one kernel of oneDNN, and bitsandbytes for a base in four bits.
LIBRARIES_MIB, KERNEL_MIB, BITSANDBYTES_MIB = 60.0, 0.25, 34.0
SAMPLED_EPOCHS = 3  # the batches of so many epochs have nearly all shapes that there are
IMPORTS_MIB = 300.0  # of a worker that has loaded no model, measured


@dataclass(frozen=True)
class ForeseenMemory:
    """A training's peak in MiB, above what was resident before its model was loaded."""

    peak_mib: float
    by_part: dict[str, float]  # as in a record: weights, adapters, gradients, optimizer, ...


@dataclass(frozen=True)
class Forecast:
    """What each cell of one method on one task will take.

    Attributes:
        task: its name.
        label: of the method's row.
        method: its name.
        cells: how many there are, one a seed.
        n_trainable: trained parameters; for LoRA-drop those of its first stage.
        adapter_mib: an adapter's size on disk, the head included.
        memory: None where it can't be counted.
        why: why it can't be counted.
    """

    task: str
    label: str
    method: str
    cells: int
    n_trainable: Trainable
    adapter_mib: float
    memory: ForeseenMemory | None
    why: str | None = None


class Predictor:
    """Predicts the cost of a grid's cells; what several cells have in common is counted once."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.tokenizer = load_tokenizer(grid.cells[0].model_folder)
        self.lengths: dict[tuple[str, int], Tokens] = {}
        self.counted: dict[Any, tuple[Trainable, float, StepCost | str]] = {}
        self.shapes: dict[Any, tuple[Shape, set[Shape], bool]] = {}
        self.loadings: dict[Precision, Loading] = {}
        # `can_pack` may build a kernel
        self.packed = any(cell.training.in_engine for cell in grid.cells) and can_pack(
            empty_model(grid.cells[0].model_folder, 2)
        )

    def lengths_of(self, cell: Cell) -> Tokens:
        """The lengths of the cell's task in tokens, cut at its `max_length`."""
        task, max_length = self.grid.tasks[cell.task.name], cell.training.max_length
        key = task.name, max_length
        if key not in self.lengths:
            splits = (task.train, task.dev)
            train, dev = (lengths(self.tokenizer, split, max_length) for split in splits)
            self.lengths[key] = Tokens(train, dev)
        return self.lengths[key]

    def _plan(self, cell: Cell) -> TrainingPlan:
        return make_plan(cell, self.grid.tasks[cell.task.name], self.packed)

    def tokens(self, cell: Cell) -> int:
        """How many tokens the widest part of a batch has."""
        shape, _, _ = self._shapes(cell)
        return shape.tokens

    def cost(self, cell: Cell, cells: int = 1) -> Forecast:
        """The cost of the cell, one of `cells` that differ in their seed."""
        task = self.grid.tasks[cell.task.name]
        widest_part, shapes, in_parts = self._shapes(cell)
        shapes = shapes | self._preparation_shapes(cell)
        evaluation_shapes = self._evaluation_shapes(cell)
        evaluated = max(evaluation_shapes, key=lambda shape: shape.tokens)
        key = (
            *(cell.method.name, repr(cell.method.settings), cell.precision, widest_part, in_parts),
            *(evaluated, task.num_labels, repr(_step_settings(cell.training))),
        )
        if key not in self.counted:
            plan = self._plan(cell)
            self.counted[key] = _count(cell, task, plan, widest_part, evaluated, in_parts)
        trainable, adapter_mib, counted = self.counted[key]
        memory, why = None, None
        if isinstance(counted, str):
            why = counted
        else:
            loading = self._loading(cell)
            memory = _memory(counted, shapes, evaluation_shapes, cell, loading)
        return Forecast(
            task=task.name,
            label=cell.method.label,
            method=cell.method.name,
            cells=cells,
            n_trainable=trainable,
            adapter_mib=adapter_mib,
            memory=memory,
            why=why,
        )

    def _loading(self, cell: Cell) -> Loading:
        """Once for all methods on a base in one precision: it makes the model's structure again."""
        if cell.precision not in self.loadings:
            self.loadings[cell.precision] = Loading.of(cell.model_folder, cell.precision)
        return self.loadings[cell.precision]

    def _shapes(self, cell: Cell) -> tuple[Shape, set[Shape], bool]:
        """The widest part of a batch, the shapes of all parts, and if a batch has several parts.

        Drawing the batches of a large task takes seconds, and they are the same for every method.
        """
        plan = self._plan(cell)
        settings = cell.training.model_dump(exclude={"lr", "head_lr"})
        key = (cell.task.name, cell.seed, plan.packed, repr(settings))
        if key not in self.shapes:
            train = self.lengths_of(cell).train
            epochs = range(min(SAMPLED_EPOCHS, cell.training.epochs))
            parts_by_epoch = [parts_in(epoch, train, plan) for epoch in epochs]
            first_parts = parts_by_epoch[0]
            shapes = {_shape(part, train, plan) for parts in parts_by_epoch for part in parts}
            tried = widest(first_parts, train, plan)  # a training tries it before its first step
            n_batches = math.ceil(len(train) / cell.training.batch_size)
            self.shapes[key] = _shape(tried, train, plan), shapes, len(first_parts) > n_batches
        return self.shapes[key]

    def _evaluation_shapes(self, cell: Cell) -> set[Shape]:
        """The shapes of an evaluation's batches."""
        dev = self.lengths_of(cell).dev
        plan = self._plan(cell)
        batches = batches_by_length(dev.lengths, 2 * cell.training.batch_size, EVALUATED_TOKENS)
        return {_shape(batch, dev, plan) for batch in batches}

    def _preparation_shapes(self, cell: Cell) -> set[Shape]:
        """The shapes of the batches that the method prepares itself on."""
        method = make(cell.method.name, cell.method.settings)
        if not isinstance(method, Prepared):
            return set()
        plan = self._plan(cell)
        probe = _SampleProbe(method, self.lengths_of(cell).train, plan)
        with contextlib.suppress(_SampleProbe.Drawn):
            method.prepare(sized_model(cell.model_folder, 2, cell.precision), probe)
        return probe.shapes


def _shape(indices: Sequence[int], data: Encoded, plan: TrainingPlan) -> Shape:
    """The shape of a pass through the examples at `indices`."""
    return Shape(len(indices), data.width(indices), n_tokens(indices, data, plan), plan.packed)


class _SampleProbe(Rehearsal):
    """A rehearsal that notes the shapes of its sample's batches and ends there, untrained."""

    class Drawn(Exception):
        """The sample is drawn, and its shapes are noted."""

    def __init__(self, method: Method, train: Encoded, plan: TrainingPlan) -> None:
        super().__init__(method, train, plan)
        self.shapes: set[Shape] = set()

    def sample(self, share: float, least: int) -> NoReturn:
        for batch in super().sample(share, least):
            size, width = batch.inputs["input_ids"].shape
            n_tokens = batch.n_tokens(self.plan.packed)
            parts = n_parts(size, n_tokens, self.plan)
            size, n_tokens = (math.ceil(n / parts) for n in (size, n_tokens))
            self.shapes.add(Shape(size, width, n_tokens, self.plan.packed))
        raise self.Drawn


def lengths(tokenizer: Any, split: Examples, max_length: int) -> Encoded:
    """The split as token ids that are all 0 and have the right lengths, nearly so in a large one.

    Args:
        tokenizer: the model's own.
        split: the texts.
        max_length: tokens at which texts are cut.
    """
    n_letters = [sum(map(len, text)) for text in split.texts]
    order = sorted(range(len(n_letters)), key=n_letters.__getitem__)
    sample = order
    if len(order) > TOKENISED:
        step = -(-(len(order) - LONGEST) // (TOKENISED - LONGEST))
        sample = order[-LONGEST:] + order[:-LONGEST:step]
    texts = [split.texts[index] for index in sample]
    encoded = encode(tokenizer, texts, [0] * len(texts), NO_LIMIT)
    tokens_per_letter = sum(encoded.lengths) / max(1, sum(n_letters[index] for index in sample))
    all_lengths = [max(1, round(n * tokens_per_letter)) for n in n_letters]
    for index, length in zip(sample, encoded.lengths, strict=True):
        all_lengths[index] = length
    rows = [[0] * min(max_length, length) for length in all_lengths]
    return Encoded({"input_ids": rows}, split.labels, {"input_ids": 0}, 0)


def largest(
    predictor: Predictor, cells: Sequence[Cell], tell: Callable[[str], None] = lambda _: None
) -> list[Forecast]:
    """The cost of each method on the task with the widest batch, where it needs the most memory."""
    widest_by_label: dict[str, Cell] = {}
    for cell in cells:
        widest_cell = widest_by_label.setdefault(cell.method.label, cell)
        if predictor.tokens(cell) > predictor.tokens(widest_cell):
            widest_by_label[cell.method.label] = cell
    costs = []
    for label, cell in widest_by_label.items():
        tell(label)
        costs.append(predictor.cost(cell))
    return costs


def _step_settings(training: Resolved) -> dict[str, Any]:
    """The settings that the memory of a step depends on, beside its shape."""
    return training.model_dump(include={"fast", "checkpointing", "device"})


def _count(
    cell: Cell, task: Task, plan: TrainingPlan, shape: Shape, evaluated: Shape, in_parts: bool
) -> tuple[Trainable, float, StepCost | str]:
    """Trained parameters, the adapter's MiB, and what a step holds or why it can't be counted."""
    method = make(cell.method.name, cell.method.settings)
    model = inject(sized_model(cell.model_folder, task.num_labels, cell.precision), method)
    state = adapter_state(model)
    adapter_mib = sum(t.numel() * t.element_size() for t in state.values()) / MIB
    trainable = count(model)
    try:
        with (
            threads_for("cpu", cell.training.threads),  # on which a kernel's use depends
            activation_checkpointing(model, cell.training.checkpointing),
        ):
            counted: StepCost | str = count_step(model, method, plan, shape, evaluated, in_parts)
    except Exception as error:  # whatever a model or a method raises where tensors have no values
        counted = f"{type(error).__name__}: {one_line(error, 200)}"
    return trainable, adapter_mib, counted


def _memory(
    counted: StepCost,
    shapes: set[Shape],
    evaluation_shapes: set[Shape],
    cell: Cell,
    loading: Loading,
) -> ForeseenMemory:
    parts = {
        name: getattr(counted, name) for name in ("weights", "adapters", "gradients", "optimizer")
    }
    always = parts["weights"] + parts["adapters"] + parts["optimizer"]
    train = always + parts["gradients"] + counted.activations + counted.transient
    peak = max(train, always + counted.evaluation)
    if cell.training.device == "cpu":
        n_kernels = _n_kernels(counted.kernels, shapes)
        n_kernels += _n_kernels(counted.evaluation_kernels, evaluation_shapes)
        # there are no kernels yet while a base is quantised
        peak = max(
            peak + _cpu_rest(n_kernels, cell.precision),
            loading.peak(counted.weights) + _cpu_rest(0, cell.precision),
        )
    parts["activations"] = counted.activations
    return ForeseenMemory(peak, {**parts, "rest": peak - sum(parts.values())})


def _n_kernels(kernels: Kernels, shapes: set[Shape]) -> int:
    """How many kernels passes of these shapes need."""
    n_rows = len({shape.rows for shape in shapes})
    n_sentences = len({(shape.size, shape.width) for shape in shapes})
    return kernels.of_rows * n_rows + kernels.of_sentences * n_sentences


class Loading(NamedTuple):
    """MiB that loading a model holds: these beside its weights, and `least` at some time before."""

    beside: float
    least: float

    @classmethod
    def of(cls, folder: Path, precision: Precision) -> Self:
        """Each tensor of the files lies beside what becomes of it, one after the other.

        A base is quantised behind all else, each matrix from a copy in fp32 of its own, unless it
        is stored so. Files of several precisions are made fp32 before that, as a whole.
        """
        stored, held = stored_dtype(folder), DTYPES.get(precision.base)
        if stored is not None and stored == held:
            return cls(0.0, 0.0)  # the tensors stay in their file
        model = empty_model(folder, 2)
        numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
        if stored is None and held is None:
            return cls(sum(numbers.values()) * 4 / MIB, 0.0)
        matrices = [] if held else [f"{name}.weight" for name in linear_names(model)]
        largest = max((numbers.pop(name, 0) for name in matrices), default=0)  # one may be tied
        read = (stored or torch.float32).itemsize  # bytes of a number
        becomes = (held or DTYPES[precision.compute]).itemsize
        copied = 0 if stored == torch.float32 else 4
        return cls(largest * (read + copied) / MIB, _while_cast(numbers.values(), read, becomes))

    def peak(self, weights: float) -> float:
        """MiB at the most, with the weights that are held in the end."""
        return max(self.least, weights + self.beside)


def _while_cast(numbers: Iterable[int], read: int, becomes: int) -> float:
    """The most MiB that is held while tensors of so many numbers are cast one after the other."""
    held = peak = 0
    for n in numbers:
        held += n * becomes
        peak = max(peak, held + n * read)
    return peak / MIB


def _cpu_rest(n_kernels: int, precision: Precision) -> float:
    """MiB of libraries' code and kernels on a CPU."""
    uses_bitsandbytes = precision.base == "nf4" and quantiser("nf4") != "peftlab"
    kernels_mib = KERNEL_MIB * min(MOST_KERNELS, n_kernels)
    return LIBRARIES_MIB + kernels_mib + BITSANDBYTES_MIB * uses_bitsandbytes
