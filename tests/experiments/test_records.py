"""What experiments have left: every record loads, and rates are chosen by the rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from again import SURE, main, stay
from defaults import Score, choose, of_model, read, standard_error
from paired import paired
from scipy.stats import ttest_rel
from whole import whole

from peftlab.errors import RequestError
from peftlab.methods import METHODS
from peftlab.records.record import Record
from peftlab.records.store import select
from peftlab.records.verdicts import Comparison

RESULTS = Path(__file__).parents[2] / "results"


def test_every_committed_record_loads_and_is_of_a_clean_tree() -> None:
    files = sorted(RESULTS.glob("**/records/*.json"))
    assert files
    for file in files:
        record = Record.model_validate_json(file.read_text(encoding="utf-8"))
        assert file.stem == record.cell
        assert record.environment.commit is not None and record.environment.dirty is False, file


def test_the_lowest_rate_within_a_standard_error_of_the_best_is_chosen() -> None:
    """Of 100 examples at 90 % the standard error is 3 points: 88 is within it, 86 is not."""
    rates = {1e-4: 0.86, 1e-3: 0.88, 1e-2: 0.90, 1e-1: 0.89}
    scores = {rate: {("model", "task"): Score(accuracy, 100)} for rate, accuracy in rates.items()}
    assert standard_error(scores[1e-2]) == pytest.approx(0.03, abs=0.002)
    assert choose(scores) == 1e-3


def test_differences_are_paired_by_seed() -> None:
    first, second = RESULTS / "batches" / "random", RESULTS / "batches" / "grouped"
    rows = paired(first, second)
    (row,) = [row for row in rows if (row.task, row.method) == ("stsb", "lora[lr=0.002]")]
    low, high = ttest_rel(pearsons(second), pearsons(first)).confidence_interval(0.95)
    assert row.n_seeds == 5 and (row.low, row.high) == pytest.approx((low, high))
    assert paired(second, first)[0].mean == pytest.approx(-rows[0].mean)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of two folders that differ in their batches alone."""
    folders = tmp_path / "random", tmp_path / "grouped"
    for folder in folders:
        shutil.copytree(RESULTS / "batches" / folder.name / "records", folder / "records")
    return folders


def change(record: Path, **fields: object) -> None:
    """Change fields of a record's file; `environment` and `training` change those of parts."""
    values = json.loads(record.read_text(encoding="utf-8"))
    for name, value in fields.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    record.write_text(json.dumps(values), encoding="utf-8")


def test_a_seed_that_one_folder_lacks_is_an_error(two: tuple[Path, Path]) -> None:
    next((two[1] / "records").iterdir()).unlink()
    with pytest.raises(RequestError, match="do not have the same cells"):
        paired(*two)


def test_one_seed_alone_is_an_error(two: tuple[Path, Path]) -> None:
    """It has no interval, and NaN is below no threshold."""
    for folder in two:
        for path in (folder / "records").iterdir():
            if json.loads(path.read_text(encoding="utf-8"))["seed"]:
                path.unlink()
    with pytest.raises(RequestError, match=r"one seed alone has no interval: .*'stsb'"):
        paired(*two)


def test_a_second_record_of_a_row_is_an_error(two: tuple[Path, Path]) -> None:
    first = next((two[0] / "records").iterdir())
    shutil.copy(first, first.with_stem("another"))
    change(first.with_stem("another"), cell="another")
    with pytest.raises(RequestError, match="is there twice"):
        paired(*two)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"training": {"epochs": 5}}, "epochs"),
        ({"environment": {"processor": "another"}}, "processor"),
        ({"precision": "nf4"}, "precision"),
    ],
)
def test_cells_that_differ_in_more_than_one_condition_are_an_error(
    fields: dict[str, object], name: str, two: tuple[Path, Path]
) -> None:
    change(next((two[1] / "records").iterdir()), **fields)
    with pytest.raises(RequestError, match=rf"differ in more than one: .*{name}"):
        paired(*two)


def test_a_damaged_record_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "batches" / "random" / "records", tmp_path / "records")
    damaged = next((tmp_path / "records").iterdir())
    damaged.write_text("half of a rec")
    with pytest.raises(RequestError, match=f"can't be read: {damaged.stem}"):
        whole(tmp_path)


def pearsons(folder: Path) -> list[float]:
    """Of LoRA on STS-B, by seed."""
    records = select(whole(folder), ["stsb"], ["lora"])
    return [record.score["pearson"] for record in sorted(records, key=lambda one: one.seed)]


def test_verdicts_that_stay_and_that_turn_are_counted() -> None:
    text = (RESULTS / "minilm" / "verdicts.json").read_text(encoding="utf-8")
    first = Comparison.model_validate_json(text)
    told = [pair for pair in first.pairs if pair.verdict in SURE]
    from_the_other_side = first.model_copy(update={"pairs": [p.of(p.b) for p in first.pairs]})
    counts = stay(first, from_the_other_side).values()
    assert sum(one.told for one in counts) == sum(one.stay for one in counts) == len(told) > 0
    assert sum(one.turned + one.more for one in counts) == 0
    contrary = [
        pair.model_copy(update={"verdict": pair.of(pair.b).verdict}) for pair in first.pairs
    ]
    counts = stay(first, first.model_copy(update={"pairs": contrary})).values()
    assert sum(one.turned for one in counts) == len(told) and not any(one.stay for one in counts)
    none = [pair.model_copy(update={"verdict": "unclear"}) for pair in first.pairs]
    counts = stay(first.model_copy(update={"pairs": none}), first).values()
    assert sum(one.more for one in counts) == len(told) and not any(one.told for one in counts)


def test_a_comparison_agrees_with_itself(tmp_path: Path) -> None:
    main(RESULTS / "small", RESULTS / "small", tmp_path)
    first, second = (tmp_path / f"{name}.json" for name in ("first", "second"))
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")


def test_more_examples_tell_more_apart() -> None:
    rates = {1e-3: 0.88, 1e-2: 0.90}
    scores = {rate: {("model", "task"): Score(of, 10_000)} for rate, of in rates.items()}
    assert choose(scores) == 1e-2


def test_the_rate_of_all_models_is_not_the_one_of_a_single_one() -> None:
    """2 points better on the one, 40 worse on the other: what breaks a model is not taken."""
    on = {1e-3: (0.88, 0.90), 1e-2: (0.90, 0.50)}
    scores = {
        rate: {(model, "task"): Score(of, 10_000) for model, of in zip("ab", both, strict=True)}
        for rate, both in on.items()
    }
    assert (choose(of_model(scores, "a")), choose(scores)) == (1e-2, 1e-3)


def test_a_rate_that_lacks_a_place_is_an_error() -> None:
    """Its mean would be of the other, easier tasks."""
    one, two = ("model", "easy"), ("model", "hard")
    scores = {1e-3: {one: Score(0.9, 100)}, 1e-2: {one: Score(0.9, 100), two: Score(0.6, 100)}}
    with pytest.raises(RequestError, match=r"no record at the rate 0.001 of model hard"):
        choose(scores)


def test_default_rates_are_those_that_the_records_choose() -> None:
    chosen = {name: choose(scores) for name, scores in read(RESULTS / "defaults").items()}
    assert len(chosen) == 12
    assert {name: METHODS[name].default_lr for name in chosen} == chosen
