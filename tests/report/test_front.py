"""Quality against cost: which rows are on the front, of what was measured alike, all named."""

from __future__ import annotations

import csv
import itertools
import random
import re
import xml.etree.ElementTree as ET

import altair as alt
import pytest

from peftlab.report import table
from peftlab.report.figures import figures
from peftlab.report.front import front
from peftlab.report.vega import svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(records, tmp_path):
    return next(f for f in figures(table(records), tmp_path) if f.kind == "front")


def rows(figure):
    text = figure.spec["datasets"][figure.spec["data"]["name"]]
    return list(csv.DictReader(text.splitlines()))


def on_front(figure, cost):
    return {one["method"] for one in rows(figure) if one["cost"] == cost and one["front"] == "1"}


def made(record, label, score, mib, total_s=60.0, n=1000, **changes):
    one = record(label=label, score=score, settings={"rank": label}, total_s=total_s, **changes)
    memory = one.memory.model_copy(update={"peak_mib": mib})
    counts = one.n_trainable.model_copy(update={"adapter": n, "head": 0, "total": n})
    return one.model_copy(update={"memory": memory, "n_trainable": counts})


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 1), (1, 1)], [0, 1]),
        ([(1, 1), (1, 2)], [1]),
        ([(1, 1), (2, 1)], [0]),
        ([(3, 3), (1, 1), (2, 2)], [0, 1, 2]),
    ],
)
def test_front(points, expected):
    assert front(points) == expected


def test_no_point_off_the_front_is_undominated():
    draw = random.Random(0)
    points = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(60)]
    kept = [points[index] for index in front(points)]
    for cost, quality in set(points) - set(kept):
        assert any(c <= cost and q >= quality for c, q in kept)
    for one, other in itertools.permutations(set(kept), 2):
        assert (one[0] < other[0]) == (one[1] < other[1])


def test_each_cost_has_its_own_front(record, tmp_path):
    records = [
        made(record, "a", 0.7, mib=500, total_s=120, n=10),
        made(record, "b", 0.8, mib=600, total_s=60, n=20),
        made(record, "c", 0.6, mib=400, total_s=90, n=30),
    ]
    figure = drawn(records, tmp_path)
    alt.Chart.from_dict(figure.spec, validate=True)
    assert on_front(figure, "trained parameters") == {"a", "b"}
    assert on_front(figure, "peak MiB") == {"a", "b", "c"}
    assert on_front(figure, "minutes a cell") == {"b"}
    assert "by trained parameters a and b, by peak MiB c, a and b" in figure.caption
    assert "by minutes a cell b (.800 at 1.00)" in figure.alt


def test_of_an_error_less_is_better(record, tmp_path):
    records = []
    for label, error, mib in (("a", 2.0, 500), ("b", 1.0, 600), ("c", 3.0, 700)):
        one = made(record, label, 0.5, mib=mib)
        task = one.task.model_copy(update={"main_metric": "rmse"})
        records.append(one.model_copy(update={"task": task, "score": {"rmse": error}}))
    assert on_front(drawn(records, tmp_path), "peak MiB") == {"a", "b"}


def test_only_what_was_measured_alike_is_compared(record, tmp_path):
    records = [made(record, label, 0.7, mib=500) for label in ("a", "b")]
    other = made(record, "c", 0.6, mib=400, total_s=30.0, n=2000)
    environment = other.environment.model_copy(update={"threads": 64})
    figure = drawn([*records, other.model_copy(update={"environment": environment})], tmp_path)
    found = {
        cost: {one["method"] for one in rows(figure) if one["cost"] == cost}
        for cost in ("trained parameters", "peak MiB", "minutes a cell")
    }
    assert found["trained parameters"] == {"a", "b", "c"}
    assert found["peak MiB"] == found["minutes a cell"] == {"a", "b"}
    assert "Memory and time of conditions a alone." in figure.caption


def test_names_of_thirteen_alike_methods_do_not_sit_on_one_another(record, tmp_path):
    draw = random.Random(1)
    records = [
        made(
            record,
            f"method-{n}",
            draw.uniform(0.78, 0.85),
            mib=draw.uniform(500, 560),
            total_s=draw.uniform(60, 80),
            n=draw.randint(150_000, 300_000),
        )
        for n in range(12)
    ]
    records.append(made(record, "full", 0.86, mib=900, total_s=120, n=22_000_000))
    root = ET.fromstring(svg(drawn(records, tmp_path).spec))
    panels = [g for g in root.iter(f"{SVG}g") if "mark-text role-mark" in g.get("class", "")]
    assert len(panels) == 3
    for panel in panels:
        boxes = [_box(text) for text in panel]
        assert len(boxes) == 13
        for one, other in itertools.combinations(boxes, 2):
            apart = one[2] <= other[0] or other[2] <= one[0]
            assert apart or abs(one[1] - other[1]) >= 9, (one, other)


def _box(text):
    """Left end, baseline and right end, of letters 5 pixels wide."""
    x, y = map(float, re.match(r"translate\(([^,]+),([^)]+)\)", text.get("transform")).groups())
    width = 5 * len(text.text)
    left = {"start": x, "end": x - width, "middle": x - width / 2}[text.get("text-anchor")]
    return left, y, left + width
