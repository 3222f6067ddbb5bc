"""What the cells of a grid will cost, before one of them trains: memory, disk, trained parameters.

    weights · adapters · gradients · optimizer    exactly, on the injected structure
    activations                                   exactly, for the widest part of a batch
    rest                                          the passes' own working memory, counted; on a CPU
                                                  kernels and libraries' code too, by what was
                                                  measured of them (docs/plan.md)

The peak is that of `train_peak_mib` in a record: above what was resident before the model was
loaded. What can't be counted, as of a model that asks its numbers for something, is None.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from peftlab.bench.cell import Cell
from peftlab.bench.execute import MOST_KERNELS
from peftlab.bench.grid import Grid
from peftlab.bench.process import activation_checkpointing, count, make_plan
from peftlab.bench.tokens import Tokens
from peftlab.errors import one_line
from peftlab.layers import QUANTISED, Precision, adapter_state, quantiser
from peftlab.methods import Method, Prepared, inject, make
from peftlab.models import empty_model, load_tokenizer, sized_model
from peftlab.records.record import Trainable
from peftlab.settings import Resolved
from peftlab.tasks import Examples, Task
from peftlab.training import Encoded, Plan, Rehearsal, encode, packs
from peftlab.training.batches import by_length
from peftlab.training.cost import Counted, Kernels, Shape, count_step
from peftlab.training.meters import MIB
from peftlab.training.passes import EVALUATED_TOKENS, n_parts, n_tokens, parts_in, widest

TOKENISED = 2000  # texts of a split; of more, the lengths of the others follow from their letters
LONGEST = 200  # of them are the longest ones, since the widest batch is made of those
NO_LIMIT = 2**31 - 1  # tokens: no text is cut
# Of the rest of a CPU's peak, measured (docs/plan.md): the libraries' code as it is first run, a
# kernel of oneDNN, bitsandbytes and its own.
LIBRARIES_MIB, KERNEL_MIB, BITSANDBYTES_MIB = 60.0, 0.25, 34.0
SAMPLED_EPOCHS = 3  # epochs, whose batches have nearly all shapes that there are
IMPORTS_MIB = 300.0  # of a worker that has loaded no model, measured


@dataclass(frozen=True)
class Memory:
    """A training's peak in MiB, above what was resident before its model was loaded."""

    peak_mib: float
    by_part: dict[str, float]  # as a record's: weights, adapters, gradients, optimizer, ...


@dataclass(frozen=True)
class Cost:
    """What the cells of one method on one task will each take.

    Attributes:
        task: its name.
        label: of the method's row.
        method: its name.
        cells: how many they are, one a seed.
        n_trainable: trained parameters; LoRA-drop's are those of its first stage.
        adapter_mib: an adapter's size on disk, the head included.
        memory: None where it can't be counted.
        why: what prevented that.
    """

    task: str
    label: str
    method: str
    cells: int
    n_trainable: Trainable
    adapter_mib: float
    memory: Memory | None
    why: str | None = None


class Predictor:
    """Predicts cells of one grid; what several of them have in common is counted once."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.tokenizer = load_tokenizer(grid.cells[0].model_folder)
        self.lengths: dict[tuple[str, int], Tokens] = {}
        self.counted: dict[Any, tuple[Trainable, float, Counted | str]] = {}
        self.shapes: dict[Any, tuple[Shape, set[Shape], bool]] = {}
        self.packed = packs(empty_model(grid.cells[0].model_folder, 2))

    def lengths_of(self, cell: Cell) -> Tokens:
        """The cell's task as lengths alone, cut to what it takes."""
        task, most = self.grid.tasks[cell.task.name], cell.training.max_length
        if (task.name, most) not in self.lengths:
            train, dev = (lengths(self.tokenizer, split, most) for split in (task.train, task.dev))
            self.lengths[task.name, most] = Tokens(train, dev)
        return self.lengths[task.name, most]

    def _plan(self, cell: Cell) -> Plan:
        return make_plan(cell, self.grid.tasks[cell.task.name], self.packed)

    def tokens(self, cell: Cell) -> int:
        """Of the widest part of a batch."""
        shape, _, _ = self._shapes(cell)
        return shape.tokens

    def cost(self, cell: Cell, cells: int = 1) -> Cost:
        """What the cell will take."""
        task = self.grid.tasks[cell.task.name]
        shape, shapes, in_parts = self._shapes(cell)
        shapes = shapes | self._prepared(cell)
        answered = self._evaluation_shapes(cell)
        evaluated = max(answered, key=lambda shape: shape.tokens)
        key = (
            *(cell.method.name, repr(cell.method.settings), cell.precision, shape, in_parts),
            *(evaluated, task.num_labels, repr(_of_passes(cell.training))),
        )
        if key not in self.counted:
            plan = self._plan(cell)
            self.counted[key] = _counted(cell, task, plan, shape, evaluated, in_parts)
        trainable, adapter_mib, counted = self.counted[key]
        return Cost(
            task=task.name,
            label=cell.method.label,
            method=cell.method.name,
            cells=cells,
            n_trainable=trainable,
            adapter_mib=adapter_mib,
            memory=None if isinstance(counted, str) else _memory(counted, shapes, answered, cell),
            why=counted if isinstance(counted, str) else None,
        )

    def _shapes(self, cell: Cell) -> tuple[Shape, set[Shape], bool]:
        """Of the parts of a batch: the widest, all their shapes, and if a batch has several.

        A large task's take seconds to draw, and every method's are the same.
        """
        plan = self._plan(cell)
        but_for_rates = cell.training.model_dump(exclude={"lr", "head_lr"})
        key = (cell.task.name, cell.seed, plan.packed, repr(but_for_rates))
        if key not in self.shapes:
            train = self.lengths_of(cell).train
            epochs = range(min(SAMPLED_EPOCHS, cell.training.epochs))
            drawn = [parts_in(epoch, train, plan) for epoch in epochs]
            shapes = {_shape(part, train, plan) for parts in drawn for part in parts}
            tried = widest(drawn[0], train, plan)  # by a training, before its first step
            batches = math.ceil(len(train) / cell.training.batch_size)
            self.shapes[key] = _shape(tried, train, plan), shapes, len(drawn[0]) > batches
        return self.shapes[key]

    def _evaluation_shapes(self, cell: Cell) -> set[Shape]:
        """The shapes of an evaluation's batches."""
        dev = self.lengths_of(cell).dev
        plan = self._plan(cell)
        batches = by_length(dev.lengths, 2 * cell.training.batch_size, EVALUATED_TOKENS)
        return {_shape(batch, dev, plan) for batch in batches}

    def _prepared(self, cell: Cell) -> set[Shape]:
        """The shapes that the method meets while it prepares itself."""
        method = make(cell.method.name, cell.method.settings)
        if not isinstance(method, Prepared):
            return set()
        plan = self._plan(cell)
        sampled = _Sampled(method, self.lengths_of(cell).train, plan)
        with contextlib.suppress(_Sampled.Known):
            method.prepare(sized_model(cell.model_folder, 2, cell.precision), sampled)
        return sampled.shapes


def _shape(indices: Sequence[int], data: Encoded, plan: Plan) -> Shape:
    """That of a pass through the examples at `indices`."""
    return Shape(len(indices), data.width(indices), n_tokens(indices, data, plan), plan.packed)


class _Sampled(Rehearsal):
    """A rehearsal that ends once it is known which batches it would be of."""

    class Known(Exception):
        """The batches are known."""

    def __init__(self, method: Method, train: Encoded, plan: Plan) -> None:
        super().__init__(method, train, plan)
        self.shapes: set[Shape] = set()

    def sample(self, share: float, least: int) -> NoReturn:
        for batch in super().sample(share, least):
            size, width = batch.inputs["input_ids"].shape
            n_tokens = batch.n_tokens(self.plan.packed)
            parts = n_parts(size, n_tokens, self.plan)
            size, n_tokens = (math.ceil(n / parts) for n in (size, n_tokens))
            self.shapes.add(Shape(size, width, n_tokens, self.plan.packed))
        raise self.Known


def lengths(tokenizer: Any, split: Examples, most: int) -> Encoded:
    """A split of which only lengths are known: exactly, or of a large one nearly.

    Args:
        tokenizer: the model's own.
        split: texts.
        most: tokens, to which texts are cut.
    """
    letters = [sum(map(len, text)) for text in split.texts]
    order = sorted(range(len(letters)), key=letters.__getitem__)
    chosen = order
    if len(order) > TOKENISED:
        step = -(-(len(order) - LONGEST) // (TOKENISED - LONGEST))
        chosen = order[-LONGEST:] + order[:-LONGEST:step]
    texts = [split.texts[index] for index in chosen]
    found = encode(tokenizer, texts, [0] * len(texts), NO_LIMIT)
    a_letter = sum(found.lengths) / max(1, sum(letters[index] for index in chosen))
    tokens = [max(1, round(n * a_letter)) for n in letters]
    for index, length in zip(chosen, found.lengths, strict=True):
        tokens[index] = length
    tokens = [min(most, length) for length in tokens]
    rows = [[0] * length for length in tokens]
    return Encoded({"input_ids": rows}, split.labels, {"input_ids": 0}, 0)


def largest(
    predictor: Predictor, cells: Sequence[Cell], tell: Callable[[str], None] = lambda _: None
) -> list[Cost]:
    """What each method will take on the task of the widest batch, where it holds the most."""
    widest_of: dict[str, Cell] = {}
    for cell in cells:
        known = widest_of.get(cell.method.label)
        if known is None or predictor.tokens(cell) > predictor.tokens(known):
            widest_of[cell.method.label] = cell
    found = []
    for label, cell in widest_of.items():
        tell(label)
        found.append(predictor.cost(cell))
    return found


def _of_passes(training: Resolved) -> dict[str, Any]:
    """Those settings on which the size of a step depends, beside its shape."""
    return training.model_dump(include={"fast", "checkpointing", "device"})


def _counted(
    cell: Cell, task: Task, plan: Plan, shape: Shape, evaluated: Shape, in_parts: bool
) -> tuple[Trainable, float, Counted | str]:
    method = make(cell.method.name, cell.method.settings)
    model = inject(sized_model(cell.model_folder, task.num_labels, cell.precision), method)
    state = adapter_state(model)
    adapter_mib = sum(t.numel() * t.element_size() for t in state.values()) / MIB
    trainable = count(model)
    try:
        with activation_checkpointing(model, cell.training.checkpointing):
            found: Counted | str = count_step(model, method, plan, shape, evaluated, in_parts)
    except Exception as error:  # whatever a model or a method meets that has no numbers
        found = f"{type(error).__name__}: {one_line(error, 200)}"
    return trainable, adapter_mib, found


def _memory(counted: Counted, shapes: set[Shape], answered: set[Shape], cell: Cell) -> Memory:
    held = {
        name: getattr(counted, name) for name in ("weights", "adapters", "gradients", "optimizer")
    }
    kept = held["weights"] + held["adapters"] + held["optimizer"]
    train = kept + held["gradients"] + counted.activations + counted.transient
    peak = max(train, kept + counted.evaluation)
    if cell.training.device == "cpu":
        made = _made(counted.kernels, shapes) + _made(counted.evaluation_kernels, answered)
        # no kernels are there yet when a base is quantised
        peak = max(
            peak + _cpu_rest(made, cell.precision),
            _loading(counted, cell) + _cpu_rest(0, cell.precision),
        )
    held["activations"] = counted.activations
    return Memory(peak, {**held, "rest": peak - sum(held.values())})


def _made(kernels: Kernels, shapes: set[Shape]) -> int:
    """Kernels that passes of these shapes need."""
    n_rows = len({shape.rows for shape in shapes})
    n_sentences = len({(shape.size, shape.width) for shape in shapes})
    return kernels.of_rows * n_rows + kernels.of_sentences * n_sentences


def _loading(counted: Counted, cell: Cell) -> float:
    """MiB while the model is loaded: what is quantised is read whole, in fp32, from its file."""
    if cell.precision.base not in QUANTISED:
        return counted.weights
    numbers = sum(p.numel() for p in empty_model(cell.model_folder, 2).parameters())
    return counted.weights + numbers * torch.float32.itemsize / MIB


def _cpu_rest(kernels: int, precision: Precision) -> float:
    quantised = precision.base == "nf4" and quantiser("nf4") != "peftlab"
    return LIBRARIES_MIB + KERNEL_MIB * min(MOST_KERNELS, kernels) + BITSANDBYTES_MIB * quantised
