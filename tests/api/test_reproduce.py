"""Published recipes: every one can be asked for, and its table comes out beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.api import reproduce as api
from peftlab.bench.recipe import Recipe, recipes
from peftlab.cli import main
from peftlab.errors import RequestError
from peftlab.methods import make
from peftlab.records.published import Published
from sessions import FakeSession

MADE = Recipe(
    name="made",
    about="for tests",
    source="nobody",
    model="roberta-base",
    tasks=["acceptability", "similarity", "entailment"],
    methods=["lora", {"name": "dora", "label": "DoRA", "rank": 2}],
    seeds=[0, 1, 2],
    training={"epochs": 2, "lr": 1e-3},
    by_task={"similarity": {"lr": 4e-3, "epochs": 5}, "acceptability": {"metric": "f1"}},
    open=["nothing is said"],
    flags=["it contradicts itself"],
    small={"tasks": ["acceptability"], "seeds": [0], "training": {"epochs": 1}},
    published=Published(scores={"lora": {"entailment": 0.5}, "DoRA": {"entailment": 0.6}}),
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A recipe on tasks of our own, run by a session that trains nothing."""
    monkeypatch.chdir(tmp_path)
    FakeSession.made = []
    monkeypatch.setattr("peftlab.bench.run.Session", FakeSession)
    monkeypatch.setattr("peftlab.bench.recipe.recipes", lambda: {"made": MADE})
    monkeypatch.setattr(api, "recipes", lambda: {"made": MADE})


@pytest.mark.parametrize("recipe", recipes().values(), ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("scale", ["full", "small"])
def test_every_recipe_is_a_request_that_can_be_met(recipe: Recipe, scale: Any) -> None:
    suites = recipe.suites(scale, model="minilm")
    rows = {variant.label for suite in suites for variant in suite.methods}
    tasks = {task for suite in suites for task in suite.tasks}
    assert all(make(v.name, v.settings) for suite in suites for v in suite.methods)
    assert {suite.model for suite in suites} == {"minilm"}
    scores = recipe.published.scores
    if scale == "full":
        assert rows == scores.keys() and tasks == {task for of in scores.values() for task in of}
        assert recipe.by_task.keys() <= tasks
    assert any(scores[row].keys() & tasks for row in rows)
    assert all(0 < score < 1 for of_row in scores.values() for score in of_row.values())
    assert recipe.open and recipe.flags


def test_tasks_that_are_trained_alike_are_one_suite_and_others_have_their_own() -> None:
    suites = MADE.suites("full")
    found = {tuple(s.tasks): (s.metric, s.training.lr, s.training.epochs) for s in suites}
    assert found == {
        ("acceptability",): ("f1", 1e-3, 2),
        ("similarity",): (None, 4e-3, 5),
        ("entailment",): (None, 1e-3, 2),
    }
    (small,) = MADE.suites("small", training={"threads": 1})
    assert (small.tasks, small.seeds, small.training.epochs) == (["acceptability"], [0], 1)
    assert small.training.threads == 1 and [v.label for v in small.methods] == ["lora", "DoRA"]


def test_a_part_of_a_recipe_is_trained_as_the_whole_would_be() -> None:
    (suite,) = MADE.suites("full", tasks=["similarity"], methods=["DoRA"], seeds=[7])
    assert (suite.tasks, suite.seeds, suite.training.lr) == (["similarity"], [7], 4e-3)
    assert [(v.label, v.settings) for v in suite.methods] == [("DoRA", {"rank": 2})]
    (small,) = MADE.suites("small", tasks=["entailment"])  # what is asked for wins
    assert (small.tasks, small.training.epochs) == (["entailment"], 1)
    for wrong, words in (
        ({"tasks": ["cola"]}, "unknown task of the recipe made 'cola'.*similarity"),
        ({"methods": ["dora"]}, "unknown row of the recipe made 'dora'.*DoRA"),
    ):
        with pytest.raises(RequestError, match=words):
            MADE.suites("full", **wrong)


@pytest.mark.usefixtures("made")
def test_every_part_runs_once_and_the_rows_are_those_that_were_published(
    tiny_model: Path,
) -> None:
    done = api.reproduce("made", model=tiny_model, out="here")
    assert len(done.records) == len(FakeSession.made) == 3 * 2 * 3
    assert [(row.row, row.task, row.seeds) for row in done.rows] == [
        ("lora", "entailment", [0, 1, 2]),
        ("DoRA", "entailment", [0, 1, 2]),
    ]
    assert done.rows[0].mean == pytest.approx(done.rows[0].published + done.rows[0].difference)
    again = api.reproduce("made", model=tiny_model, out="here")
    assert len(FakeSession.made) == 18 and again.rows == done.rows


@pytest.mark.usefixtures("made")
def test_the_command_shows_the_table_the_other_base_and_what_not_to_believe(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["peftlab", "reproduce", "made", "--model", str(tiny_model)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    said = capsys.readouterr().out
    for words in ("entailment", "unclear: no predictions", "published: nobody"):
        assert words in said
    assert "the base is another one, tiny and not roberta-base" in said
    assert "it leaves open:\n  - nothing is said" in said
    assert "- it contradicts itself" in said
    assert Path("runs/made/report/index.html").is_file()


@pytest.mark.usefixtures("made")
def test_in_json_and_small(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["made", "--model", str(tiny_model), "--scale", "small", "--json"]
    words += ["--methods", "lora,DoRA", "--seeds", "0"]
    monkeypatch.setattr("sys.argv", ["peftlab", "reproduce", *words])
    with pytest.raises(SystemExit):
        main()
    document = json.loads(capsys.readouterr().out)
    assert document["out"] == str(Path("runs/made-small"))
    assert len(document["records"]) == 2 and document["rows"] == []
    assert document["recipe"]["source"] == "nobody"


def test_recipes_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["peftlab", "reproduce"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert all(recipe.name in said and recipe.about in said for recipe in recipes().values())


def test_wrong_requests_are_named() -> None:
    for words, given in (
        (r"unknown recipe 'lora-papr'; did you mean 'lora-paper'\?", {"name": "lora-papr"}),
        (r"scale must be one of small, full, got 'tiny'", {"name": "lora-paper", "scale": "tiny"}),
        (r"nonsense", {"name": "lora-paper", "nonsense": 1}),
        (r"model must be a path", {"name": "lora-paper", "model": 3}),
    ):
        with pytest.raises(RequestError, match=words):
            api.reproduce(**given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("made")
def test_the_home_folder_is_known_of_where_a_recipe_s_records_go(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    resolved = api.resolve_recipe("made", str(tiny_model), None, "small", "~/runs", {}, {})
    assert resolved.parts[0].out == tmp_path / "runs"


@pytest.mark.usefixtures("made")
def test_a_part_that_does_not_fit_is_refused_before_the_first_is_trained(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts differ in their tasks' lengths, and the last may be the widest."""

    def forecaster(grid: Any, out: Path, console: Any) -> Any:
        def say(due: Any) -> str:
            if "entailment" in grid.tasks:
                raise RequestError("would not fit into memory")
            return "fits"

        return say

    monkeypatch.setattr(api, "forecaster", forecaster)
    with pytest.raises(RequestError, match="would not fit"):
        api.reproduce("made", model=tiny_model, out="here")
    assert not FakeSession.made
    assert not (tmp_path / "here").exists()


def test_a_setting_that_is_asked_for_wins_over_the_recipe_s_and_a_task_s_own() -> None:
    asked = {"epochs": 7, "lr": 1e-2}
    for scale, task in (("small", "acceptability"), ("full", "similarity"), ("full", "entailment")):
        (suite,) = MADE.suites(scale, tasks=[task], training=asked)
        assert (suite.training.epochs, suite.training.lr) == (7, 1e-2)
