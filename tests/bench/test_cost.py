"""What is predicted of cells: parts and sizes as a run has them, times, and what doesn't fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertModel

from peftlab.api import compare as comparing
from peftlab.api.plan import _parts_of
from peftlab.bench import cost, times
from peftlab.bench import foresee as foreseeing
from peftlab.bench.cell import Cell
from peftlab.bench.cost import Predictor, largest, lengths
from peftlab.bench.foresee import PREDICTION_ERROR, check_fits, describe_plan, foresee
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.run import Observer, run_grid
from peftlab.bench.short import short
from peftlab.bench.suite import make_suite
from peftlab.bench.times import Time, by_measured, by_records, measure_cells
from peftlab.errors import RequestError
from peftlab.layers import Precision
from peftlab.machine import environment
from peftlab.models import empty_model, load_tokenizer
from peftlab.records.record import Record
from peftlab.records.store import Store
from peftlab.tasks import Examples, Task

pytestmark = pytest.mark.usefixtures("warm")

METHODS = ["head", "lora", "full"]


def grid_of(model: Path, task: Task, methods: list[str] | None = None, **training: Any) -> Grid:
    return resolve(
        make_suite(
            model=str(model),
            tasks=[task],
            methods=methods or METHODS,
            seeds=[0, 1],
            training={"epochs": 2, "batch_size": 8, "threads": 1} | training,
        )
    )


@pytest.fixture(scope="module")
def grid(tiny_model: Path, tiny_task: Task) -> Grid:
    return grid_of(tiny_model, tiny_task)


@pytest.fixture(scope="module")
def predictor(grid: Grid) -> Predictor:
    return Predictor(grid)


def cell_of(grid: Grid, method: str) -> Cell:
    return next(cell for cell in grid.cells if cell.method.name == method)


@pytest.fixture(scope="module")
def ran(
    tiny_model: Path, tiny_task: Task, tmp_path_factory: pytest.TempPathFactory, warm: None
) -> Store:
    out = tmp_path_factory.mktemp("ran")
    suite = make_suite(
        model=str(tiny_model),
        tasks=[tiny_task],
        methods=["lora"],
        seeds=[0],
        training={"epochs": 2, "batch_size": 8, "threads": 1},
    )
    run_grid(resolve(suite), out, Observer())
    return Store(out)


def test_a_cell_takes_what_was_predicted(grid: Grid, predictor: Predictor, ran: Store) -> None:
    (record,) = ran.records()
    found = predictor.cost(cell_of(grid, "lora"))
    assert found.memory is not None
    assert record.memory is not None
    assert found.n_trainable == record.n_trainable
    for part in ("weights", "adapters", "gradients", "optimizer", "activations"):
        held = record.memory.by_part[part]
        assert found.memory.by_part[part] == pytest.approx(held, rel=1e-3), part
    saved = sum(path.stat().st_size for path in ran.out.rglob("*.safetensors")) / 2**20
    header = 0.01  # names, shapes and what a card says
    assert found.adapter_mib == pytest.approx(saved, abs=header)


def test_parts_make_up_the_peak(grid: Grid, predictor: Predictor) -> None:
    for method in METHODS:
        memory = predictor.cost(cell_of(grid, method)).memory
        assert memory is not None
        assert sum(memory.by_part.values()) == pytest.approx(memory.peak_mib)
        assert min(memory.by_part.values()) >= 0


@pytest.mark.parametrize(
    ("base", "stored", "wanted"),
    [
        ("fp32", torch.float32, 1.0),  # stays in its file
        ("bf16", torch.bfloat16, 1.0),
        ("fp32", torch.bfloat16, 6400 * 4 + 6400 * 2),  # what became of it, and the embedding
        ("bf16", torch.float32, 1.5 * 6400 * 4),  # the embedding, and what became of it
        ("int8", torch.float32, 1.5 * 6400 * 4),
        ("int8", torch.bfloat16, 2 * 6400 * 2),  # copied as it is
        ("int8", None, None),  # all of it in fp32
    ],
)
def test_a_base_is_loaded_tensor_by_tensor_unless_its_files_have_several_precisions(
    base: str, stored: torch.dtype | None, wanted: float | None, tmp_path: Path
) -> None:
    config = BertConfig(
        vocab_size=1600, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    model = BertModel(config).to(stored or torch.bfloat16)
    if stored is None:
        model.pooler.float()
    model.save_pretrained(tmp_path)
    found = cost.Loading.of(tmp_path, Precision(base, "bf16")).peak(1.0 / 2**20) * 2**20
    in_fp32 = sum(p.numel() * 4 for p in empty_model(tmp_path, 2).parameters())
    assert found == pytest.approx(1.0 + in_fp32 if wanted is None else wanted)


@pytest.mark.parametrize(
    ("base", "stored", "n_bytes"),
    [("int8", torch.float32, 4), ("int8", torch.bfloat16, 2 + 4)],  # stored, and made fp32
)
def test_beside_the_codes_of_a_matrix_lies_what_they_are_made_of(
    base: str, stored: torch.dtype, n_bytes: int, tmp_path: Path
) -> None:
    config = BertConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16_000, max_position_embeddings=8,
    )  # fmt: skip
    BertModel(config).to(stored).save_pretrained(tmp_path)
    found = cost.Loading.of(tmp_path, Precision(base, "bf16")).peak(7.0)
    assert found == pytest.approx(7.0 + 4 * 16_000 * n_bytes / 2**20)


def test_loading_is_counted_once_for_the_methods_on_one_base(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, own = [], cost.Loading.of
    noted = lambda *base: found.append(base) or own(*base)  # noqa: E731
    monkeypatch.setattr(cost.Loading, "of", noted)
    predictor = Predictor(grid)
    for method in ("head", "lora"):
        predictor.cost(cell_of(grid, method))
    (base,) = found
    assert base == (grid.cells[0].model_folder, cell_of(grid, "lora").precision)


def test_it_is_counted_with_the_threads_of_the_cell(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some kernels serve few threads alone, and what they replace is packed."""
    found, own, before = [], cost.count_step, torch.get_num_threads()

    def noted(*arguments: Any) -> Any:
        found.append(torch.get_num_threads())
        return own(*arguments)

    monkeypatch.setattr(cost, "count_step", noted)
    grid = grid_of(tiny_model, tiny_task, ["lora"], threads=before + 1)
    assert Predictor(grid).cost(cell_of(grid, "lora")).memory is not None
    assert (found, torch.get_num_threads()) == ([before + 1], before)


def test_what_was_counted_is_not_counted_again(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    asked = []
    count = cost.count_step
    monkeypatch.setattr(cost, "count_step", lambda *given: (asked.append(1), count(*given))[1])
    predictor = Predictor(grid)
    for _ in range(2):
        for method in METHODS:
            predictor.cost(cell_of(grid, method))
    assert len(asked) == len(METHODS)


def test_what_can_t_be_counted_is_none_and_says_why(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeError("asks for a number")

    monkeypatch.setattr(cost, "count_step", refuse)
    predictor = Predictor(grid)
    found = predictor.cost(cell_of(grid, "lora"))
    assert found.memory is None
    assert found.why == "RuntimeError: asks for a number"
    check_fits(predictor, grid.cells, [found], 1.0)  # what is not known is not refused
    assert describe_plan(2, [None, None], [found]).endswith("memory of lora unknown")


def test_lengths_of_a_large_split_are_nearly_right(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    texts = [("cat " * (1 + i % 29),) for i in range(299)]
    split = Examples([*texts, ("a " * 60,)], [0] * 300)  # of short words: more than by its letters
    exact = lengths(tokenizer, split, max_length=62)
    assert exact.lengths == [3 + i % 29 for i in range(299)] + [62]
    assert lengths(tokenizer, split, max_length=24).longest == 24
    monkeypatch.setattr(cost, "TOKENISED", 40)
    monkeypatch.setattr(cost, "LONGEST", 10)
    for most in (62, 12):  # 12: most texts are cut
        near = lengths(tokenizer, split, most)
        assert near.longest == most
        wanted = sum(min(most, length) for length in exact.lengths)
        assert sum(near.lengths) == pytest.approx(wanted, rel=0.1)


def test_a_method_that_prepares_itself_meets_more_shapes(tiny_model: Path, tiny_task: Task) -> None:
    grid = grid_of(tiny_model, tiny_task, ["lora", "lora-drop"], precision="bf16")
    predictor = Predictor(grid)
    lora, drop = (predictor.cost(cell_of(grid, name)).memory for name in ("lora", "lora-drop"))
    assert lora is not None
    assert drop is not None
    assert drop.peak_mib > lora.peak_mib
    assert {n: v for n, v in drop.by_part.items() if n != "rest"} == pytest.approx(
        {n: v for n, v in lora.by_part.items() if n != "rest"}
    )


def test_the_widest_task_stands_for_a_method(tiny_model: Path, tiny_task: Task) -> None:
    long = Task(
        **{name: getattr(tiny_task, name) for name in ("kind", "metrics", "dev", "labels")},
        name="long",
        train=Examples([("cat " * 40,)] * 48, tiny_task.train.labels),
    )
    suite = make_suite(model=str(tiny_model), tasks=[tiny_task, long], methods=["lora"], seeds=[0])
    grid = resolve(suite)
    (found,) = largest(Predictor(grid), grid.cells)
    assert found.task == "long"


def test_what_does_not_fit_is_refused_with_what_would(grid: Grid, predictor: Predictor) -> None:
    found = largest(predictor, grid.cells)
    peaks = {cost.label: cost.memory.peak_mib for cost in found if cost.memory}
    *others, second, first = sorted(peaks, key=peaks.__getitem__)
    least = 1 - PREDICTION_ERROR  # what is predicted may be so much too high
    room = least * (peaks[first] + peaks[second]) / 2
    with pytest.raises(RequestError) as refused:
        check_fits(predictor, grid.cells, found, room)
    said = str(refused.value)
    assert "1 of 3 methods would not fit into memory" in said
    assert f"{first} on tiny needs {peaks[first]:,.0f} MiB" in said
    fits = [name for name in METHODS if name in (second, *others)]
    assert f"what fits as it is: {', '.join(fits)}" in said
    assert "nothing was trained" in said
    check_fits(predictor, grid.cells, found, least * peaks[first] + 1)
    check_fits(predictor, grid.cells, found, None)


def test_a_smaller_part_is_found_by_halving(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreseeing, "PREDICTION_ERROR", 0.0)  # parts of a tiny model save less
    grid = grid_of(tiny_model, tiny_task, ["lora"], batch_size=32, precision="fp32")
    predictor = Predictor(grid)
    found = largest(predictor, grid.cells)
    parts = grid.cells[0].model_copy(
        update={"training": grid.cells[0].training.model_copy(update={"accumulation": 4})}
    )
    enough = predictor.cost(parts).memory
    assert enough is not None
    with pytest.raises(RequestError, match=r"fits with --accumulation 4 .* or --batch-size 8"):
        check_fits(predictor, grid.cells, found, enough.peak_mib + 0.001)
    twice = [
        cell.model_copy(update={"training": cell.training.model_copy(update={"accumulation": 2})})
        for cell in grid.cells
    ]
    with pytest.raises(RequestError, match=r"fits with --accumulation 4 .* or --batch-size 16"):
        check_fits(predictor, twice, largest(predictor, twice), enough.peak_mib + 0.001)
    with pytest.raises(RequestError, match="no batch size: weights, gradients and optimizer"):
        check_fits(predictor, grid.cells, found, 1.0)


def record_of(cell: Cell, **changed: Any) -> Record:
    """Of a cell: 100 tokens and 10 examples a second, 2 s of eval, 4 s of the rest."""
    record = Record(
        **cell.record_fields,
        status="done",
        speed={
            **{"examples_per_s": 10.0, "tokens_per_s": 100.0},
            **{"step_ms_p50": 1.0, "step_ms_p95": 1.0},
        },
        memory={
            "peak_mib": 1.0,
            "train_peak_mib": 1.0,
            "by_part": {"weights": 2.0},
            "how": "",
        },
        train_s=10.0,
        eval_s=2.0,
        total_s=16.0,
        environment=environment(cell.training.threads),
    )
    return record.model_copy(update=changed)


def test_a_time_follows_the_tokens_of_the_nearest_record(grid: Grid, predictor: Predictor) -> None:
    cell = cell_of(grid, "lora")
    train, dev = predictor.lengths_of(cell)
    record = record_of(cell)
    time = by_records(cell, train, dev, 1.0, [record])
    answered = 2.0 * sum(dev.lengths) / (16 * 10)  # the record's dev: 16 examples of 10 tokens
    assert time is not None
    assert time.cell_s == pytest.approx(4.0 + 2 * sum(train.lengths) / 100 + answered)
    longer = cell.model_copy(update={"training": cell.training.model_copy(update={"epochs": 6})})
    more = by_records(longer, train, dev, 1.0, [record])
    assert more is not None
    assert more.cell_s - 4.0 == pytest.approx(3 * (time.cell_s - 4.0))


def test_another_model_s_record_is_scaled_by_the_weights(grid: Grid, predictor: Predictor) -> None:
    cell = cell_of(grid, "lora")
    train, dev = predictor.lengths_of(cell)
    own = record_of(cell)
    other = own.model_copy(update={"model": own.model.model_copy(update={"sha256": "0"})})
    by_own, by_other = (by_records(cell, train, dev, 6.0, [r]) for r in (own, other))
    assert by_own is not None
    assert by_other is not None
    assert by_other.cell_s - 4 == pytest.approx(3 * (by_own.cell_s - 4))  # 6 MiB against 2
    assert "by the size of the weights" in by_other.source
    assert by_records(cell, train, dev, 6.0, [other, own]) == by_own  # the nearer one
    assert by_records(cell, train, dev, None, [other]) is None


def test_the_nearest_record_is_of_the_same_path_and_the_latest(
    grid: Grid, predictor: Predictor
) -> None:
    cell = cell_of(grid, "lora")
    train, dev = predictor.lengths_of(cell)
    slow, fast, later = (
        record_of(cell, speed=record_of(cell).speed.model_copy(update={"tokens_per_s": speed}))  # type: ignore[union-attr]
        for speed in (10.0, 1000.0, 2000.0)
    )
    slow = slow.model_copy(update={"training": slow.training | {"fast": False}})

    def takes(asked: Cell, records: list[Record]) -> float:
        time = by_records(asked, train, dev, 1.0, records)
        assert time is not None
        return time.cell_s

    plain = cell.model_copy(update={"training": cell.training.model_copy(update={"fast": False})})
    for records in ([slow, fast], [fast, slow]):
        assert takes(cell, records) == takes(cell, [fast])
        assert takes(plain, records) == takes(plain, [slow])
    assert takes(cell, [fast, later]) == takes(cell, [later])


@pytest.mark.parametrize("change", ["method", "threads"])
def test_other_conditions_tell_no_time(grid: Grid, predictor: Predictor, change: str) -> None:
    cell = cell_of(grid, "lora")
    train, dev = predictor.lengths_of(cell)
    record = record_of(cell_of(grid, "head")) if change == "method" else record_of(cell)
    if change == "threads":
        environment = record.environment.model_copy(update={"threads": 7})
        record = record.model_copy(update={"environment": environment})
    assert by_records(cell, train, dev, 1.0, [record]) is None


def test_a_few_steps_tell_the_time_of_all(grid: Grid, predictor: Predictor) -> None:
    cell = cell_of(grid, "head")
    told: list[str] = []
    found = measure_cells(grid, [cell], told.append)
    assert told == [cell.title]
    record = found[cell.name]
    assert record.training["epochs"] == 1
    time = by_measured(cell, *predictor.lengths_of(cell), record)
    assert record.status == "done", record.failure
    # 48 examples in batches of 8 are 6 steps, as many as there are: an epoch is one measured
    assert time is not None
    assert time.cell_s > (record.total_s or 0) / 2


def test_a_trial_answers_the_part_of_train_that_it_does_not_train_on(
    grid: Grid, predictor: Predictor
) -> None:
    train, _ = predictor.lengths_of(cell_of(grid, "lora"))
    learned, answered = _parts_of(train, 0.75)
    assert (len(learned), len(answered)) == (36, 12)
    assert sorted([*learned.lengths, *answered.lengths]) == sorted(train.lengths)


def test_no_row_pays_for_the_first_scoring(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads scikit-learn, which took seconds: times epochs and dev, minutes of the first row."""
    seen = []

    class Ran(Exception): ...

    def run(*given: object) -> None:
        seen.append(times.score.called)
        raise Ran

    monkeypatch.setattr(times, "score", Mock(wraps=times.score))
    monkeypatch.setattr(times, "CellScorer", run)
    with pytest.raises(Ran):
        measure_cells(grid, [cell_of(grid, "head")])
    assert seen == [True]


def test_the_time_of_all_is_that_of_the_tokens(grid: Grid, predictor: Predictor) -> None:
    cell = cell_of(grid, "lora")
    train, dev = predictor.lengths_of(cell)
    time = by_measured(cell, train, dev, record_of(cell))
    answered = 2.0 * sum(dev.lengths) / (16 * 10)  # the record's dev: 16 examples of 10 tokens
    assert time is not None
    assert time.cell_s == pytest.approx(4.0 + 2 * sum(train.lengths) / 100 + answered)
    assert by_measured(cell, train, dev, record_of(cell, status="failed")) is None


def test_a_short_task_keeps_the_shares_of_its_classes(tiny_task: Task) -> None:
    few = short(tiny_task, 12, 256)
    assert len(few.train) == 12
    share = sum(tiny_task.train.labels) / len(tiny_task.train)
    assert sum(few.train.labels) / 12 == pytest.approx(share, abs=0.1)


def test_the_line_says_cells_time_and_the_largest_peak(grid: Grid) -> None:
    said = foresee(grid, grid.cells, [], room=1e6)
    assert said.startswith("plan: 6 cells, time unknown (peftlab plan --measure tells), at most ")
    costs = largest(Predictor(grid), grid.cells)
    most = max(costs, key=lambda cost: cost.memory.peak_mib if cost.memory else 0)
    assert said.endswith(f" MiB ({most.label})")
    untold = foresee(grid, grid.cells, [], room=None)
    assert untold == f"{said}; how much is free this system does not tell"
    records = [record_of(cell) for cell in grid.cells]
    assert "plan: 6 cells, about " in foresee(grid, grid.cells, records, room=1e6)
    half = describe_plan(2, [Time(60.0, ""), None], [])
    assert half == "plan: 2 cells, about 60 seconds for 1, unknown for the others"


def test_what_is_free_is_looked_at_before_a_worker_takes_of_it(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its libraries were subtracted twice, and `compare` refused what `plan` says fits."""
    free = [1e6]
    monkeypatch.setattr("peftlab.bench.foresee.available_mib", lambda device: free[0])
    say = comparing.forecaster(grid, tmp_path, Console(file=io.StringIO()))
    free[0] = 1.0
    assert say(grid.cells).startswith("plan: 6 cells")


def test_a_run_is_refused_before_it_writes(grid: Grid, tmp_path: Path) -> None:
    say: Callable[[Any], str] = lambda due: foresee(grid, due, [], room=1.0)  # noqa: E731
    with pytest.raises(RequestError, match="would not fit into memory"):
        run_grid(grid, tmp_path / "runs" / "out", Observer(), foresee=say)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(RequestError, match="would not fit into memory"):
        run_grid(grid, tmp_path / "out", Observer(), foresee=say)
    assert (tmp_path / "out").is_dir()  # it was there


def test_the_worker_starts_before_memory_is_counted_and_ends_before_the_folder_is_given_back(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both take seconds; a cell that is stopped reads files in the folder until it has ended."""
    seen: list[str] = []

    class Noted:
        def __init__(self) -> None:
            seen.append("starts")

        def __enter__(self) -> Noted:
            return self

        def __exit__(self, *exception: object) -> None:
            there = [name for name in (".holder", "scratch") if (tmp_path / "out" / name).exists()]
            seen.append(f"ends {' '.join(there)}")

        def run(self, *order: object) -> None:
            raise KeyboardInterrupt

    def counted(due: object) -> str:
        seen.append("counted")
        return ""

    monkeypatch.setattr("peftlab.bench.run.Worker", Noted)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, tmp_path / "out", Observer(), foresee=counted)
    assert seen == ["starts", "counted", "ends .holder scratch"]
    assert not (tmp_path / "out" / "scratch").exists()
    seen.clear()
    with pytest.raises(ZeroDivisionError):
        run_grid(grid, tmp_path / "new", Observer(), foresee=lambda due: str(1 / 0))
    assert seen == ["starts", "ends "]


def test_a_folder_that_is_made_goes_again_after_ctrl_c(grid: Grid, tmp_path: Path) -> None:
    def stopped(due: Any) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, tmp_path / "out", Observer(), foresee=stopped)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_t_be_taken_is_told_before_memory_is_counted(
    grid: Grid, tmp_path: Path
) -> None:
    """That takes ten seconds of fifteen methods."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"not peftlab's \(notes\.txt\)"):
        run_grid(grid, tmp_path, Observer(), foresee=lambda due: pytest.fail("counted"))
