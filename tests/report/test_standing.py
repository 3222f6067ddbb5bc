"""Which rows are marked, and which one to take, in words."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from peftlab.errors import RequestError
from peftlab.records.question import Question
from peftlab.records.store import lines_of
from peftlab.records.verdicts import compare_rows
from peftlab.report import render_terminal, table
from peftlab.report.advice import advice, unreached
from peftlab.report.page import build
from peftlab.report.standing import (
    describe_interval,
    describe_marks,
    intervals,
    marks,
    matrices,
)

N = 400
# right answers of seeds 0 to 2: vera is a tie with lora, full a little behind, head far
RIGHT = {
    "full": (368, 372, 360),
    "lora": (380, 381, 379),
    "vera": (379, 379, 379),
    "head": (300, 301, 299),
}


def predicted(folder, record, n_right):
    """The record with predictions: the first `n_right` of 400 examples are right."""
    rows = [
        {
            "index": i,
            "label": i % 2,
            "prediction": i % 2 if i < n_right else 1 - i % 2,
            "logits": [],
        }
        for i in range(N)
    ]
    path = folder / "predictions" / f"{record.cell}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines_of(rows))
    score = {"accuracy": n_right / N}
    task = record.task.model_copy(update={"main_metric": "accuracy", "n_dev": N})
    best = record.best.model_copy(update={"score": {"accuracy": n_right / N + 0.01}})
    return record.model_copy(update={"task": task, "score": score, "best": best})


@pytest.fixture
def records(tmp_path, record):
    return [
        predicted(tmp_path, record(method, "mrpc", seed), right)
        for method, of in RIGHT.items()
        for seed, right in enumerate(of)
    ]


def test_a_score_has_its_own_interval_where_all_its_predictions_are_there(tmp_path, records):
    scores, comparison = table(records), compare_rows(records, [tmp_path])
    known = intervals(scores, comparison)
    assert known.keys() == {(row, 0) for row in RIGHT}
    vera, full = known["vera", 0], known["full", 0]
    assert (vera.mean, vera.n) == (pytest.approx(379 / N), 3) and 0.01 < vera.sd < full.sd
    told = "mean ± half of its 95 % interval, over dev examples and seeds"
    assert describe_interval(scores, known) == told
    del known["head", 0]
    assert describe_interval(scores, known).startswith(f"{told}; ± … sd, where")
    assert describe_interval(scores, {}) == ""


def test_the_page_shows_the_interval_and_says_so(tmp_path, records):
    (tmp_path / "predictions" / f"{records[-1].cell}.jsonl").unlink()
    page = build(tmp_path, "demo", records, drawn=()).read_text(encoding="utf-8")
    lora = intervals(table(records), compare_rows(records, [tmp_path]))["lora", 0]
    shown = f'.950 <span class="sd">± {lora.sd:.3f}</span>'.replace("± 0", "± ")
    assert lora.mean == pytest.approx(0.95) and shown in page
    assert f'title="95 %: {lora.mean - lora.sd:.3f} to'.replace("0.", ".") in page
    assert '<span class="sd">± .002</span><span class="sd"> sd</span>' in page  # of head
    assert "mean ± half of its 95 % interval, over dev examples and seeds; ± … sd" in page
    assert "<span>dev score, last epoch; ± half of its 95 % interval</span>" in page
    elsewhere = build(tmp_path / "elsewhere", "demo", records, drawn=())
    assert "last epoch; ± sd over seeds</span>" in elsewhere.read_text(encoding="utf-8")


def test_the_best_its_ties_and_what_is_not_shown_to_be_worse_are_marked(tmp_path, records):
    comparison = compare_rows(records, [tmp_path], Question(margin=0.012))
    found = marks(table(records), comparison)
    assert found == {("full", 0): "?", ("lora", 0): "*", ("vera", 0): "=", ("head", 0): ""}


def test_a_wider_margin_makes_more_ties(tmp_path, records):
    wide = compare_rows(records, [tmp_path], Question(margin=0.1))
    assert marks(table(records), wide)[("full", 0)] == "="
    assert "within ± .100" in describe_marks(wide)


def test_the_cheapest_of_those_not_shown_to_be_worse_is_recommended(tmp_path, record, records):
    found = compare_rows(records, [tmp_path], Question(margin=0.012))
    assert advice(found).startswith("Take vera: a tie with lora (by .0")
    assert "It trains 154 K parameters, takes up to 673 MiB and runs for" in advice(found)
    others = [
        predicted(tmp_path, record(one.method.name, "cola", one.seed), 300) for one in records
    ]
    assert "MiB and runs for up to" in advice(compare_rows([*records, *others], [tmp_path]))
    score = compare_rows(records, [tmp_path], Question(prefer="score"))
    assert advice(score).startswith("Take lora: it has the best mean, though vera may be better (")


def test_limits_that_nothing_meets_name_what_is_nearest(tmp_path, records):
    with pytest.raises(RequestError, match=r"no row keeps to 1 MiB.*the nearest is .head."):
        compare_rows(records, [tmp_path], Question(memory_mib=1.0))
    cheap = compare_rows(records, [tmp_path], Question(memory_mib=674.0))
    assert cheap.recommendation is not None
    assert cheap.recommendation.row == "vera"


def test_with_one_seed_the_words_say_what_is_not_covered(tmp_path, records):
    found = compare_rows([one for one in records if one.seed == 0], [tmp_path])
    assert "that takes 3 seeds" in describe_marks(found)
    assert {one.verdict for one in found.pairs} == {"unclear: 1 seed"}
    assert set(marks(table(records[::3]), found).values()) == {"*", "?"}
    assert "A verdict takes 3 seeds." in advice(found)
    (matrix,) = matrices(table(records[::3]), found)
    assert ", 1 seed, not counting others: unclear" in matrix.squares["lora", "vera"].words
    (all_seeds,) = matrices(table(records), compare_rows(records, [tmp_path]))
    assert ", 3 seeds: " in all_seeds.squares["lora", "vera"].words


def test_without_predictions_the_words_say_so(tmp_path, records):
    found = compare_rows(records, [tmp_path / "elsewhere"], Question(prefer="size", margin=0.5))
    assert {one.verdict for one in found.pairs} == {"unclear: no predictions"}
    assert "More can't be said: no predictions." in advice(found)


def test_columns_of_one_name_and_other_examples_are_kept_apart(tmp_path, record):
    def on(task_sha, right):
        of = [
            predicted(tmp_path, record(method, "mrpc", seed), n)
            for method, n in right.items()
            for seed in range(3)
        ]
        return [
            one.model_copy(update={"task": one.task.model_copy(update={"sha256": task_sha})})
            for one in of
        ]

    first = on("a" * 64, {"lora": 380, "full": 300})
    second = on("b" * 64, {"lora": 300, "full": 380})
    for one in second:  # cells of their own, with predictions of their own
        old = tmp_path / "predictions" / f"{one.cell}.jsonl"
        old.with_name(f"{one.cell}b.jsonl").write_text(old.read_text())
    first = on("a" * 64, {"lora": 380, "full": 300})
    second = [one.model_copy(update={"cell": f"{one.cell}b"}) for one in second]
    both = [*first, *second]
    found = compare_rows(both, [tmp_path])
    one, other = matrices(table(both), found)
    assert one.squares["lora", "full"].text == ".200"
    assert other.squares["lora", "full"].text == "−.200"
    assert marks(table(both), found)[("lora", 0)] == "*"
    assert marks(table(both), found)[("lora", 1)] == ""


def test_a_seed_counts_once_in_a_row_whatever_was_found(record):
    tuned = {"trials": 3, "validation": 0.1, "space": ["lr"]}

    def found(lr, seed, score):
        one = record("lora", "mrpc", seed, score=score)
        method = one.method.model_copy(update={"tuned": tuned})
        training = one.training | {"lr": lr}
        return one.model_copy(
            update={"method": method, "training": training, "cell": f"{one.cell}-{lr}"}
        )

    again = [found(1e-3, 0, 0.6), *(found(2e-3, seed, 0.8) for seed in range(3))]
    (row,) = table(again).rows
    assert [run.seed for run in row.cells[0].runs] == [0, 1, 2]
    assert row.cells[0].last.mean == pytest.approx(0.8)


def test_one_row_alone_gets_no_marks_and_no_advice(tmp_path, records):
    alone = records[:3]
    found = compare_rows(alone, [tmp_path])
    assert describe_marks(found) == advice(found) == ""
    assert matrices(table(alone), found) == []


def test_matrices_show_a_pair_both_ways(tmp_path, records):
    (matrix,) = matrices(table(records), compare_rows(records, [tmp_path]))
    assert matrix.rows == ["full", "lora", "vera", "head"]
    one, other = matrix.squares["lora", "head"], matrix.squares["head", "lora"]
    assert (one.text, one.kind) == (".200", "better")
    assert (other.text, other.kind) == ("−.200", "worse")
    assert "95 % .1" in one.words


def test_terminal_page_and_file_say_the_same(tmp_path, records):
    found = compare_rows(records, [tmp_path])
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(render_terminal(table(records), found))
    shown = console.file.getvalue()
    assert advice(found) in " ".join(shown.split())
    assert ".950 ± .003 *" in shown
    page = build(tmp_path, "demo", records, drawn=()).read_text(encoding="utf-8")
    assert advice(found) in page
    assert "What is really better" in page
    assert "Choosing the best epoch on dev would add .010." in page
    written = json.loads((tmp_path / "report" / "verdicts.json").read_text(encoding="utf-8"))
    assert written["recommendation"]["row"] == "vera"
    fields = {
        "task",
        "metric",
        "a",
        "b",
        "seeds",
        "difference",
        "low",
        "high",
        "p",
        "verdict",
        "margin",
    }
    assert all(fields <= pair.keys() for pair in written["pairs"])
    assert len(written["pairs"]) == 6


def test_many_tasks_are_told_together(tmp_path, record):
    records = [
        predicted(tmp_path, record(method, task, seed), RIGHT[method][seed])
        for method in ("lora", "vera")
        for task in ("mrpc", "cola", "grammar", "stsb")
        for seed in range(3)
    ]
    told = advice(compare_rows(records, [tmp_path]))
    assert told.startswith("Take vera: not shown to be worse on 4 (by .0")
    assert "scaled" in build(tmp_path, "demo", records, drawn=()).read_text(encoding="utf-8")


def test_a_baseline_that_no_row_reaches_is_told_before_the_advice(tmp_path, records):
    def beside(baselines):
        return [
            one.model_copy(update={"task": one.task.model_copy(update={"baselines": baselines})})
            for one in records
        ]

    better = {"majority": {"accuracy": 0.5}, "tf-idf": {"accuracy": 0.981}}
    line = (
        "No row's mean reaches tf-idf (.981): train longer, or take tf-idf, which trains "
        "in seconds."
    )

    def told(records):
        return unreached(table(records), compare_rows(records, [tmp_path]))

    assert told(beside(better)) == line
    constant = told(beside({"majority": {"accuracy": 0.97}}))
    assert constant.startswith("No row's mean reaches majority (.970), which reads no text")
    assert told(beside({"tf-idf": {"accuracy": 0.9}})) == ""
    means = sorted(row.cells[0].last.mean for row in table(records).rows)
    above_all_but_one = beside({"tf-idf": {"accuracy": (means[-1] + means[-2]) / 2}})
    comparison = compare_rows(above_all_but_one, [tmp_path])
    first, second = comparison.pairs[0].a, comparison.pairs[0].b
    for row in (first, second):
        taken = comparison.recommendation.model_copy(update={"row": row})
        line = unreached(
            table(above_all_but_one), comparison.model_copy(update={"recommendation": taken})
        )
        mean = next(r.cells[0].last.mean for r in table(records).rows if r.label == row)
        assert line.startswith(f"{row}'s mean does not reach tf-idf (") == (mean < means[-1])
    found = compare_rows(beside(better), [tmp_path])
    console = Console(file=io.StringIO(), width=400, color_system=None)
    console.print(render_terminal(table(beside(better)), found))
    assert f"{line}\n{advice(found)}" in "\n".join(
        told.rstrip() for told in console.file.getvalue().splitlines()
    )
    page = build(tmp_path, "demo", beside(better), drawn=()).read_text(encoding="utf-8")
    assert page.index(line) < page.index(advice(found))


def test_worse_than_any_row_has_no_mark_though_the_best_tells_nothing_apart(tmp_path, record):
    """An unsteady best row would make every other one look as good as it."""
    right = {"noisy": (400, 340, 400, 340, 380), "steady": [366] * 5, "weak": [340] * 5}
    records = [
        predicted(tmp_path, record(method, "mrpc", seed), n_right)
        for method, of in right.items()
        for seed, n_right in enumerate(of)
    ]
    found = marks(table(records), compare_rows(records, [tmp_path]))
    assert [found[row, 0] for row in right] == ["*", "?", ""]
