"""Every run, as the page's script reads it."""

from __future__ import annotations

import json

from peftlab.report.runs import runs
from peftlab.report.scores import table


def made(records, commands=None):
    return runs(table(records), records, commands or {})


def test_a_run_says_what_was_asked_and_on_what_it_ran(record):
    one = record(seed=4, settings={"rank": 64})
    found = made([one])
    run = found["cells"][one.cell]
    at = {name: found["shared"][place] for name, place in run["at"].items()}
    assert (run["method"], run["task"], run["seed"]) == ("lora", "mrpc", 4)
    assert at["method"]["rank"] == 64 and at["training"]["epochs"] == 3
    assert at["environment"]["processor"] == "Example CPU @ 2.0 GHz"
    assert at["environment"]["torch"] == "2.9.0" and "gpu" not in at["environment"]


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
