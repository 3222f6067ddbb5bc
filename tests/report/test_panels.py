"""Lines that one plot can't tell apart have a panel each; fewer stand in one plot."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from collections import Counter

import altair as alt
import pytest

from peftlab.report import table, vega
from peftlab.report.figures import figures
from peftlab.report.panels import MANY
from peftlab.report.style import GREY, Style
from peftlab.report.vega import SVG_WIDTH

SVG = "{http://www.w3.org/2000/svg}"
LABELS = [f"m{n}" for n in reversed(range(MANY + 1))]  # the table's order, not the alphabet's


@pytest.fixture(scope="module")
def drawn(record, curves, tmp_path_factory):
    """Figures over training of the first `n` of LABELS."""
    folder = tmp_path_factory.mktemp("panels")
    records = [
        record(label=label, score=0.5 + n / 20, settings={"rank": n})
        for n, label in enumerate(LABELS)
    ]
    for one in records:
        curves(one, folder)

    def draw(n, kind):
        found = figures(table(records[:n]), folder / "curves")
        return next(figure for figure in found if figure.kind == kind)

    return draw


def svg(spec, **chosen):
    params = [{**one, "value": chosen.get(one["name"], one["value"])} for one in spec["params"]]
    return ET.fromstring(vega.svg({**spec, "params": params}))


def lines(root):
    """How many lines there are of each colour and opacity; a path may break into several."""
    found: Counter[tuple[str, float]] = Counter()
    for group in root.iter(f"{SVG}g"):
        for mark in group if "mark-line" in group.get("class", "") else ():
            starts = [part.split(",")[0] for part in mark.get("d").split("M")[1:]]
            assert set(starts) <= {starts[0]}  # a line begins where the others do
            found[mark.get("stroke"), float(mark.get("opacity", 1))] += len(starts)
    return found


def words(root):
    return [node.text for node in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("kind", ["score", "loss", "memory"])
def test_every_method_has_a_panel_over_all_others(drawn, kind):
    figure = drawn(len(LABELS), kind)
    alt.Chart.from_dict(figure.spec, validate=True)
    root = svg(figure.spec)
    assert [word for word in words(root) if word in LABELS] == LABELS
    found = lines(root)
    assert found[(GREY, 0.35)] == len(LABELS) ** 2
    colours = Counter(Style(LABELS).colour.values())
    assert Counter({colour: found[(colour, 1.0)] for colour in colours}) == colours
    assert "Grey: the other methods." in figure.caption


def test_a_hidden_method_has_no_panel_and_no_grey_line(drawn):
    root = svg(drawn(len(LABELS), "score").spec, off=["m2"])
    assert [word for word in words(root) if word in LABELS] == [n for n in LABELS if n != "m2"]
    assert lines(root)[(GREY, 0.35)] == MANY**2


def test_the_method_looked_at_is_seen_in_every_panel(drawn):
    found = lines(svg(drawn(len(LABELS), "score").spec, picked="m2"))
    assert found[(Style(LABELS).colour["m2"], 1.0)] == len(LABELS) + 1
    assert found[(GREY, 0.35)] == len(LABELS) ** 2
    assert sum(n for (_, opacity), n in found.items() if opacity == 0.125) == MANY


def test_panels_are_as_wide_as_a_file(drawn):
    width = float(svg(drawn(len(LABELS), "loss").spec).get("width"))
    assert 0.9 * SVG_WIDTH < width < 1.1 * SVG_WIDTH


def test_few_methods_stand_in_one_plot_with_their_names_at_the_lines(drawn):
    figure = drawn(MANY, "score")
    root = svg(figure.spec)
    assert [word for word in words(root) if word in LABELS] == LABELS[:MANY]
    assert "role-legend" not in ET.tostring(root, encoding="unicode")
    assert sum(lines(root).values()) == MANY
    assert "Grey" not in figure.caption


def test_names_that_would_collide_stand_in_a_legend(record, curves, tmp_path):
    records = [record(label=label, score=0.8, settings={"rank": label}) for label in "ab"]
    for one in records:
        curves(one, tmp_path)
    root = svg(figures(table(records), tmp_path / "curves")[0].spec)
    assert [word for word in words(root) if word in ("a", "b")] == ["a", "b"]
    assert "role-legend" in ET.tostring(root, encoding="unicode")


def test_a_pointer_on_grey_lines_is_on_no_method(drawn):
    spec = drawn(len(LABELS), "loss").spec
    grey = spec["datasets"][spec["spec"]["layer"][0]["data"]["name"]]
    first, second = list(csv.DictReader(grey.splitlines()))[:2]
    assert (first["method"], first["y"], second["method"]) == ("", "NaN", LABELS[0])
