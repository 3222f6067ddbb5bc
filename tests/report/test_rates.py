"""The curves over the learning rate, and how a rate was found."""

from __future__ import annotations

import csv
from pathlib import Path

import altair as alt
import pytest

from peftlab.records.trials import Trial, read_trials, settings_at_border, write_trials
from peftlab.report import table, text
from peftlab.report.figures import figures
from peftlab.report.page import build
from peftlab.report.rates import END, describe_trials, of_rows


def trial(label="lora", number=0, epochs=1, lr=1e-3, score=0.5, **more):
    return Trial(
        task="mrpc",
        data="cd" * 32,
        model="minilm",
        label=label,
        number=number,
        epochs=epochs,
        values={"lr": lr},
        metric="f1",
        score=score,
        cell=f"{label}-{number}",
        **more,
    )


TRIALS = [
    trial(number=0, lr=1e-3, score=0.5),
    trial(number=1, lr=3e-3, score=0.7),
    trial(number=2, lr=1e-4, score=0.4),
    trial(number=3, lr=2e-3, score=None),
    trial(number=4, lr=3e-3, score=0.8, epochs=3, chosen=True, at_border=["lr"]),
    trial("full", lr=2e-5, score=0.6, chosen=True),
]


def drawn(records, trials=()):
    found = {figure.kind: figure for figure in figures(table(records), Path("nowhere"), trials)}
    for figure in found.values():
        alt.Chart.from_dict(figure.spec, validate=True)
    return found


def rows(figure):
    table_ = figure.spec["datasets"][figure.spec["data"]["name"]]
    return list(csv.reader(table_.splitlines()))[1:]


def at_rate(record, method, rate, seed=0):
    one = record(method, "mrpc", seed, label=f"{method}[lr={rate:g}]")
    return one.model_copy(
        update={"cell": f"{one.cell}-{rate}", "training": one.training | {"lr": rate}}
    )


def test_rows_that_differ_in_the_rate_alone_are_one_curve(record):
    records = [at_rate(record, "lora", rate) for rate in (1e-3, 1e-5, 1e-2)]
    records += [at_rate(record, "full", 1e-5)]  # one rate is no curve
    figure = drawn(records)["rate"]
    assert [(row[0], row[1], float(row[2])) for row in rows(figure)] == [
        ("lora", "lora[lr=1e-05]", 1e-5),
        ("lora", "lora[lr=0.001]", 1e-3),
        ("lora", "lora[lr=0.01]", 1e-2),
    ]
    assert "rate" not in drawn(records[:2])


def test_a_rate_is_at_the_end_where_no_trial_lay_beyond_it():
    """Although its range goes on; one that was tried on both sides is not."""
    tried = [trial(number=n, lr=rate, score=0.5) for n, rate in enumerate((1e-4, 1e-3, 1e-2))]
    for rate, found in ((1e-4, ["lr"]), (1e-3, []), (1e-2, ["lr"])):
        chosen = trial(number=3, lr=rate, score=0.6, epochs=3, chosen=True)
        assert (
            settings_at_border(chosen, [*tried, chosen, trial("full", lr=1e-5, score=0.1)]) == found
        )


@pytest.mark.parametrize(("others", "found"), [([1e-3, 1e-2], []), ([9.8e-3], ["lr"])])
def test_near_its_range_s_end_is_the_end_only_where_nothing_else_lay_there(
    others: list[float], found: list[str]
) -> None:
    chosen = trial(number=1, lr=9.8e-3, score=0.6, epochs=3, chosen=True, at_border=["lr"])
    assert settings_at_border(chosen, [*(trial(lr=rate) for rate in others), chosen]) == found


def test_every_trial_is_a_point_and_what_was_taken_is_marked(record):
    figure = drawn([record("lora"), record("full")], TRIALS)["tuning"]
    shown = rows(figure)
    assert len(shown) == 5  # not the one that failed
    marks = {(row[0], float(row[1]), int(row[3])): row[4] for row in shown}
    assert marks[("lora", 3e-3, 3)] == END
    assert marks[("full", 2e-5, 1)] == "taken"
    assert marks[("lora", 3e-3, 1)] == ""
    assert "Nothing was tried beyond the rate taken of lora." in figure.caption


def test_the_best_so_far_never_falls_and_of_an_error_never_rises(record):
    figure = drawn([record("lora")], TRIALS)["trials"]
    assert [float(row[2]) for row in rows(figure)] == [0.5, 0.7, 0.7, 0.7]  # one failed, and counts


def test_trials_of_another_task_or_row_are_in_no_figure(record):
    other = [one.model_copy(update={"task": "cola"}) for one in TRIALS]
    assert "tuning" not in drawn([record("lora")], other)
    assert "tuning" not in drawn([record("vera")], TRIALS)


def test_trials_of_other_examples_or_of_another_model_are_not_the_row_s(record, tmp_path):
    """Of a file that was changed, and of two models in one folder; they are kept beside."""
    others = [
        one.model_copy(update=change)
        for change in ({"data": "ef" * 32}, {"model": "mpnet"})
        for one in TRIALS
    ]
    shown = table([record("lora")])
    assert "tuning" not in drawn([record("lora")], of_rows(others, shown))
    assert describe_trials(of_rows([*others, *TRIALS], shown), shown) == (
        "Every row had as many trials as every other."
    )
    for trials in (TRIALS, others[: len(TRIALS)], others[len(TRIALS) :]):
        write_trials(tmp_path, trials)
    assert len(read_trials(tmp_path)) == 3 * len(TRIALS)


def test_trials_are_kept_by_row_and_the_page_tells_of_them(tmp_path, record):
    write_trials(tmp_path / "tuning", [TRIALS[-1]])
    write_trials(tmp_path / "tuning", TRIALS[:-1])
    again = [trial(number=0, score=0.9, chosen=True)]
    write_trials(tmp_path / "tuning", again)
    assert read_trials(tmp_path / "tuning") == [TRIALS[-1], *again]
    page = build(tmp_path, "tuned", [record("lora")], drawn=()).read_text(encoding="utf-8")
    assert "How settings were found" in page
    plain = build(tmp_path / "none", "plain", [record("lora")], drawn=())
    assert "How settings were found" not in plain.read_text(encoding="utf-8")


def test_the_table_says_how_settings_were_found(record):
    tuned = {"trials": 6, "validation": 0.1, "space": ["lr"]}

    def on(task, rate):
        one = record("lora", task)
        method = one.method.model_copy(update={"tuned": tuned, "rate_from": "tuned"})
        return one.model_copy(
            update={"method": method, "training": one.training | {"lr": rate}, "cell": task}
        )

    found = table([on("mrpc", 1e-3), on("rte", 2e-3)])
    assert [row.label for row in found.rows] == ["lora"]
    assert found.rows[0].training["lr"] == "0.001 on mrpc, 0.002 on rte"
    assert text.describe_tuning(found) == [
        "Found on each task by 6 trials a row on 0.1 of train, dev unseen: "
        "lora (lr 0.001 on mrpc, 0.002 on rte). Verdicts are on these settings: another search "
        "might turn some."
    ]
    assert text.describe_default_rates(found) == ""
    assert text.describe_tuning(table([record("lora")])) == []


def test_rows_with_as_many_trials_are_told_apart_from_others(tmp_path, record):
    """By the shortest trainings, which every value begins with, and with 0 for what had none."""
    records = [record("lora"), record("full")]
    assert describe_trials(TRIALS, table(records)) == "Trials of a row on a task: lora 4, full 1."
    assert describe_trials([], table(records[:1])) == "Every row had as many trials as every other."
    equal = [*TRIALS[3:5], TRIALS[-1]]
    assert describe_trials(equal, table(records)) == "Every row had as many trials as every other."
    third = [*records, record("vera")]
    write_trials(tmp_path / "tuning", equal)
    page = build(tmp_path, "tuned", third, drawn=()).read_text(encoding="utf-8")
    assert "Trials of a row on a task: lora 1, full 1, vera 0." in page


FOUND = "lora (4 trials of lr on 0.1 of train)"


def test_a_tuned_row_beside_an_untuned_one_of_its_name_has_its_trials(record):
    tuned = {"trials": 4, "validation": 0.1, "space": ["lr"]}
    plain = record("lora")
    part = plain.method.model_copy(update={"tuned": tuned, "rate_from": "tuned"})
    found = plain.model_copy(
        update={"method": part, "cell": "tuned", "training": plain.training | {"lr": 3e-3}}
    )
    scores = table([plain, found])
    assert [row.label for row in scores.rows] == ["lora (lr 0.001, not tuned)", FOUND]
    own = of_rows(TRIALS, scores)
    assert {one.label for one in own} == {FOUND}
    assert len(own) == sum(one.label == "lora" for one in TRIALS)


def test_trials_are_drawn_by_the_metric_that_scored_them_alone(record):
    """The folder may be judged by another one since."""
    assert "tuning" in drawn([record("lora")], TRIALS)
    other = [one.model_copy(update={"metric": "rmse"}) for one in TRIALS]
    assert not {"tuning", "trials"} & drawn([record("lora")], other).keys()


def test_a_curve_is_of_rows_that_differ_in_the_rate_alone_whatever_their_labels(record):
    def row(rate, **training):
        one = record("lora", cell=f"{rate}-{training}", training={"lr": rate, **training})
        label = {"label": f"mine at {rate}"}
        return one.model_copy(update={"method": one.method.model_copy(update=label)})

    rates = (1e-4, 1e-3, 1e-2)
    steady = [row(rate) for rate in rates]
    points = rows(drawn(steady)["rate"])
    assert {row[0] for row in points} == {"mine at 0.0001"}
    assert [float(row[2]) for row in points] == list(rates)
    warmed = [row(rate, warmup=0.1) for rate in rates]
    curves = {row[0] for row in rows(drawn([*steady, *warmed])["rate"])}
    assert len(curves) == 2
    headed = [row(rate, head_lr=0.5) for rate in rates]
    assert len({row[0] for row in rows(drawn([*steady, *headed])["rate"])}) == 2


def test_the_tuned_row_has_the_trials_also_where_it_was_compared_first(record):
    tuned = {"trials": 4, "validation": 0.1, "space": ["lr"]}
    plain = record("lora")
    part = plain.method.model_copy(update={"tuned": tuned, "rate_from": "tuned"})
    found = plain.model_copy(
        update={"method": part, "cell": "tuned", "training": plain.training | {"lr": 3e-3}}
    )
    scores = table([found, plain])
    assert [bool(row.tuned) for row in scores.rows] == [True, False]
    assert {one.label for one in of_rows(TRIALS, scores)} == {scores.rows[0].label}


@pytest.mark.parametrize(
    ("found", "is_default"),
    [(("tuned", "tuned"), False), (("default", "tuned"), False), (("default", "default"), True)],
)
def test_a_tuned_row_is_at_default_rates_where_all_trials_failed_on_every_task(
    record, found, is_default
):
    tuned = {"trials": 4, "validation": 0.1, "space": ["lr"]}
    records = []
    for task, rate_from in zip(("mrpc", "stsb"), found, strict=True):
        one = record("lora", task)
        part = one.method.model_copy(update={"tuned": tuned, "rate_from": rate_from})
        records.append(one.model_copy(update={"method": part}))
    (row,) = table(records).rows
    assert row.default_rate == is_default
