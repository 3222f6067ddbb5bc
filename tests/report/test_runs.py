"""Every run, as the page's script reads it."""

from __future__ import annotations

import json

from peftlab.report.curves import Curves
from peftlab.report.runs import runs
from peftlab.report.scores import table


def made(records, commands=None, curves=None):
    return runs(table(records), records, commands or {}, curves or {})


def test_a_run_says_what_was_asked_and_on_what_it_ran(record):
    one = record(seed=4, settings={"rank": 64})
    found = made([one])
    run = found["cells"][one.cell]
    at = {name: found["shared"][place] for name, place in run["at"].items()}
    assert (run["method"], run["task"], run["seed"]) == ("lora", "mrpc", 4)
    assert at["method"]["rank"] == 64 and at["training"]["epochs"] == 3
    assert at["environment"]["processor"] == "Example CPU @ 2.0 GHz"
    assert at["environment"]["torch"] == "2.9.0" and "gpu" not in at["environment"]


def test_a_run_has_its_own_curve_short_enough_for_five_hundred(record):
    one, bare = record(seed=0), record(seed=1)
    losses = [(step, 1 / step) for step in range(1, 1001)]
    known = Curves(loss=losses, memory=[], score={"f1": [(1, 0.51234), (2, 0.75)], "accuracy": []})
    cells = made([one, bare], curves={one.cell: known})["cells"]
    found = cells[one.cell]
    assert found["epochs"] == [0.5123, 0.75]
    assert len(found["losses"]) == 40 and found["losses"] == sorted(found["losses"], reverse=True)
    assert len(json.dumps(found["losses"])) < 500
    assert "epochs" not in cells[bare.cell] and "losses" not in cells[bare.cell]


def test_a_failed_run_says_why_and_comes_too(record, failed):
    bad = failed(message="NaN at step 3")
    assert made([record("full"), bad])["cells"][bad.cell]["failed"] == "Diverged: NaN at step 3"


def test_the_command_is_whole_again_with_the_seed_between(record):
    records = [record(seed=seed) for seed in (0, 1)]
    lines = {one.cell: f"peftlab x --seeds {one.seed} --out y" for one in records}
    found = made(records, lines)
    for one in records:
        places = found["cells"][one.cell]["command"]
        parts = [found["shared"][place] for place in places]
        assert f"--seeds {one.seed} ".join(parts) == lines[one.cell]
    assert made(records)["cells"][records[0].cell]["command"] is None


def test_what_runs_share_is_kept_once(record):
    few, many = (made([record(seed=seed) for seed in range(n)]) for n in (1, 50))
    assert many["shared"] == few["shared"]
    assert len(json.dumps(many)) < 50 * 400


def test_a_score_that_is_no_number_is_valid_json(record):
    one = record(score=float("nan"))
    found = made([one])
    assert found["cells"][one.cell]["score"] == {"f1": None}
    json.dumps(found, allow_nan=False)
