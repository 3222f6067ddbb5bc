"""The confusion matrices: counted from predictions, summed over seeds."""

from __future__ import annotations

import json
import re

import pytest

from peftlab.report import build, table
from peftlab.report.confusion import MOST_CLASSES, confusions


@pytest.fixture
def write(tmp_path):
    """Write predictions/CELL.jsonl from pairs of label and prediction."""

    def write(record, pairs):
        path = tmp_path / "predictions" / f"{record.cell}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = [
            {"index": index, "label": label, "prediction": prediction, "logits": [0.1, 0.2]}
            for index, (label, prediction) in enumerate(pairs)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = record.task.model_copy(update={"n_dev": len(pairs)})
        return record.model_copy(update={"task": task})

    return write


def of_classes(record, labels):
    return record.model_copy(
        update={"task": record.task.model_copy(update={"labels": list(labels)})}
    )


def test_counts_are_summed_over_seeds(record, write, tmp_path):
    given = [[(0, 0), (0, 0), (1, 0)], [(0, 0), (0, 1), (1, 1)]]
    records = [
        write(of_classes(record(seed=seed), ["ham", "spam"]), pairs)
        for seed, pairs in enumerate(given)
    ]
    ((column, (matrix,)),) = confusions(table(records), tmp_path / "predictions")
    assert (column.label, matrix.method, matrix.n_seeds) == ("mrpc", "lora", 2)
    assert matrix.labels == ("ham", "spam")
    assert matrix.counts == ((3, 1), (1, 1))
    assert matrix.share(0, 0) == 0.75


def test_a_class_that_is_never_predicted_has_its_column(record, write, tmp_path):
    one = write(of_classes(record(), "abc"), [(0, 0), (1, 0)])
    ((_, (matrix,)),) = confusions(table([one]), tmp_path / "predictions")
    assert matrix.counts == ((1, 0, 0), (1, 0, 0), (0, 0, 0))
    assert matrix.share(2, 0) == 0.0


def test_records_without_names_number_their_classes(record, write, tmp_path):
    one = write(record(), [(0, 2)])
    ((_, (matrix,)),) = confusions(table([one]), tmp_path / "predictions")
    assert matrix.labels == ("0", "1", "2")


def test_a_part_of_the_answers_is_not_counted_for_all(record, write, tmp_path):
    whole = write(of_classes(record(seed=0), "ab"), [(0, 0), (1, 0)])
    part = write(of_classes(record(seed=1), "ab"), [(1, 1)])
    part = part.model_copy(update={"task": whole.task})
    ((_, (matrix,)),) = confusions(table([whole, part]), tmp_path / "predictions")
    assert (matrix.counts, matrix.n_seeds) == (((1, 0), (1, 0)), 1)


def test_a_regression_and_many_classes_have_none(record, write, tmp_path):
    many = write(of_classes(record(), map(str, range(MOST_CLASSES + 1))), [(0, 0)])
    nameless = write(record(task="cola"), [(0, MOST_CLASSES)])
    regression = write(record(task="stsb"), [(1.0, 1.2)])
    assert confusions(table([many, nameless, regression]), tmp_path / "predictions") == []
    assert confusions(table([record()]), tmp_path / "nowhere") == []


def test_the_page_has_a_table_with_the_classes_names(record, write, tmp_path):
    one = write(of_classes(record(), ["ham", "<b>spam"]), [(0, 0), (0, 0), (1, 0)])
    page = build(tmp_path, "demo", [one], drawn=()).read_text(encoding="utf-8")
    (matrix,) = re.findall(r'<table class="matrix">.*?</table>', page, flags=re.DOTALL)
    assert re.findall(r'<th scope="col">(.*?)</th>', matrix)[1:] == ["ham", "&lt;b&gt;spam"]
    assert re.findall(r"<td.*?>(\d+)</td>", matrix) == ["2", "0", "1", "0"]
    assert 'id="confusion"' in page
    plain = build(tmp_path / "plain", "demo", [record()], drawn=()).read_text(encoding="utf-8")
    assert 'id="confusion"' not in plain
