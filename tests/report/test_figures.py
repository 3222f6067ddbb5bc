"""The figures: valid, one colour a method, short lines, safe names."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import altair as alt
import pytest

from peftlab.report import table
from peftlab.report.curves import Curves, average, read, smooth, thin
from peftlab.report.figures import POINTS_A_LINE, figures
from peftlab.report.style import Style, score_scale
from peftlab.report.vega import svg


def rows(spec, dataset=0):
    return list(spec["datasets"].values())[dataset].splitlines()[1:]


def test_every_kind_of_figure_for_every_task(suite, out):
    names = [figure.name for figure in figures(table(suite), out / "curves")]
    assert names == [
        f"{kind}-{task}"
        for task in ("mrpc", "grammar")
        for kind in ("score", "loss", "speed", "memory", "peak-memory", "front")
    ]


def test_every_spec_is_valid_vega_lite(suite, out):
    for figure in figures(table(suite), out / "curves"):
        alt.Chart.from_dict(figure.spec, validate=True)


def test_svg_files_are_well_formed_and_say_what_is_seen(out):
    files = sorted((out / "report" / "figures").glob("*.svg"))
    assert len(files) == 12
    for path in files:
        root = ET.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        task = path.stem.rpartition("-")[2]
        assert any(node.text and node.text.startswith(f"{task}: ") for node in root.iter())


def test_a_method_has_one_colour_in_all_figures(suite, out):
    seen = {}
    for figure in figures(table(suite), out / "curves"):
        layers = figure.spec.get("layer") or figure.spec["spec"]["layer"]
        scales = [layer["encoding"].get("color", {}) for layer in layers]
        for scale in (s["scale"] for s in scales if s.get("field") == "method"):
            for label, colour in zip(scale["domain"], scale["range"], strict=True):
                assert seen.setdefault(label, colour) == colour
    assert len(set(seen.values())) == 3


def test_twenty_methods_differ_in_colour_or_dash():
    labels = [str(n) for n in range(20)]
    style = Style(labels)
    assert len({(style.colour[one], tuple(style.dash[one])) for one in labels}) == 20


def test_long_curves_are_thinned_and_keep_their_ends(record, curves, tmp_path):
    one = record()
    curves(one, tmp_path, steps=3000)
    loss = next(f for f in figures(table([one]), tmp_path / "curves") if f.name == "loss-mrpc")
    (raw,) = (t for t in loss.spec["datasets"].values() if t.startswith("method,x,y,seed1\n"))
    points = [line.split(",") for line in raw.splitlines()[1:]]
    assert len(points) <= POINTS_A_LINE
    assert (points[0][1], points[-1][1]) == ("1", "3000")
    assert "Smoothed over 201 steps" in loss.caption


def test_peak_memory_stacks_to_the_peak(record, tmp_path):
    one = record()
    (peak,) = (f for f in figures(table([one]), tmp_path) if f.name == "peak-memory-mrpc")
    stack = [line.split(",") for line in rows(peak.spec) if line.count(",") == 4]
    assert sum(float(mib) for *_, mib in stack) == pytest.approx(one.memory.peak_mib)
    assert stack[-1][2] == "rest of the peak"


def test_without_curves_only_the_bars_are_drawn(record, tmp_path):
    names = [figure.name for figure in figures(table([record()]), tmp_path)]
    assert names == ["speed-mrpc", "peak-memory-mrpc"]  # and one method alone has no front


def test_names_that_make_one_file_name_are_told_apart(record, tmp_path):
    names = [f.name for f in figures(table([record(task="a/b"), record(task="a b")]), tmp_path)]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() for name in names)


def test_curves_have_what_was_measured_and_no_file_has_none(tmp_path):
    step = {"epoch": 0.5, "lr": 0.1}
    lines = [
        {"step": 1, **step, "loss": 3.0, "time_s": 1.0, "memory_mib": 11.0},
        {"step": 2, **step, "loss": 2.0, "time_s": 2.0, "memory_mib": None},
        {"epoch": 1, "score": {"f1": 0.5}},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    expected = Curves([(1, 3.0), (2, 2.0)], [(1.0, 11.0)], {"f1": [(1, 0.5)]})
    assert read(path) == expected
    path.write_text("no curve", encoding="utf-8")
    assert read(path) == read(tmp_path / "absent.jsonl") == Curves([], [], {})


def test_a_mean_stands_only_where_all_seeds_have_a_point():
    assert average([[(1, 2.0), (2, 4.0)], [(1, 4.0)]]) == [(1, 3.0, 2.0, 4.0)]
    assert average([[(1, 2.0)], []]) == [(1, 2.0)]
    assert average([]) == []


@pytest.mark.parametrize("n", [1, 2, 399, 400, 401, 999, 4000])
def test_thin_never_exceeds_the_limit(n):
    points = [(float(x), 0.0) for x in range(n)]
    kept = thin(points, 400)
    assert len(kept) <= 400 and kept[0] == points[0] and kept[-1] == points[-1]


def test_smooth_keeps_a_constant():
    assert smooth([(x, 2.0) for x in range(9)], 5) == [(x, 2.0) for x in range(9)]


def test_a_constant_score_stands_at_its_own_height() -> None:
    """Of a scale without a width Vega's one tick was labelled 1, at .95."""
    low, high = score_scale([0.95, 0.95]).to_dict()["domain"]
    assert low < 0.95 < high
    assert "domain" not in score_scale([0.5, 0.6]).to_dict()


def test_a_lone_seed_is_thin_behind_its_line_and_so_is_each_of_several(record, curves, tmp_path):
    records = [record("lora"), record("full", seed=0), record("full", seed=1)]
    for one in records:
        curves(one, tmp_path)
    found = figures(table(records), tmp_path / "curves")
    loss = next(figure for figure in found if figure.kind == "loss")
    marks = [mark.attrib for mark in ET.fromstring(svg(loss.spec)).iter() if mark.get("d")]
    colours = Style(["lora", "full"]).colour
    thin = [one["stroke"] for one in marks if one.get("stroke-width") == "0.8"]
    assert sorted(thin) == sorted([colours["lora"], colours["full"], colours["full"]])
    assert "A method's only seed is thin as it was" in loss.caption
    assert "thin: each of them" in loss.caption


@pytest.mark.parametrize(
    ("of_rounds", "told"),
    [
        (("lora", "full"), "Mean over rounds"),
        (("lora",), "Mean over runs"),
        ((), "Mean over seeds"),
    ],
)
def test_bars_say_what_they_are_means_over(record, tmp_path, of_rounds, told):
    cells = [record(row, seed=seed) for row in ("lora", "full") for seed in (0, 1)]
    short = cells[0].task.model_copy(
        update={"sha256": "ff" * 32, "drawn_from": cells[0].task.sha256}
    )
    rounds = [
        one.model_copy(update={"cell": f"round-{one.cell}", "task": short})
        for one in cells
        if one.method.name in of_rounds
    ]
    drawn = {one.kind: one for one in figures(table(cells, rounds), tmp_path)}
    for kind in ("speed", "peak"):
        assert drawn[kind].caption.startswith(told)
