from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab.bench.grid import resolve
from peftlab.bench.suite import (
    DEFAULT_TASKS,
    DEMO_EPOCHS,
    DEMO_METHODS,
    Suite,
    Tune,
    Variant,
    make_suite,
    merged_request,
)
from peftlab.errors import RequestError
from peftlab.methods import METHODS, make, parse_methods
from peftlab.settings import Training
from peftlab.tasks import Examples, Task


def test_the_empty_request_is_the_demo() -> None:
    suite = make_suite()
    assert suite.name == "demo"
    assert suite.model == "minilm"
    assert suite.tasks == DEFAULT_TASKS
    assert [make(variant.name).name for variant in suite.methods] == DEMO_METHODS
    asked = make_suite(tasks=["similarity"]).methods
    assert [variant.name for variant in asked] == list(METHODS)
    assert len(DEMO_METHODS) == 13  # as README says; a new method is not in the demo by itself
    assert suite.seeds == [0, 1]
    assert suite.training.epochs == DEMO_EPOCHS
    assert make_suite(training={"epochs": 5}).training.epochs == 5
    assert make_suite(tasks=["similarity"]).training.epochs is None


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))
TOML = """
name = "ranks"
model = "minilm"
tasks = ["mrpc", "stsb"]
seeds = [0, 1, 2]
training = { epochs = 4, lr = 2e-3 }
methods = ["full", { name = "lora" }, { name = "lora", label = "LoRA r=16", rank = 16, lr = 1e-3 }]
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "ranks.toml"
    path.write_text(TOML)
    return path


def test_a_suite_file_says_the_same_as_options(toml: Path) -> None:
    suite = merged_request(toml, {})
    assert (suite.name, suite.tasks, suite.seeds) == ("ranks", ["mrpc", "stsb"], [0, 1, 2])
    assert (suite.training.epochs, suite.training.lr) == (4, 2e-3)
    rows = [(v.name, v.label, v.settings, v.lr) for v in suite.methods]
    assert rows == [
        ("full", "full", {}, None),
        ("lora", "lora", {}, None),
        ("lora", "LoRA r=16", {"rank": 16}, 1e-3),
    ]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiments_can_be_asked_for(path: Path) -> None:
    suite = merged_request(path, {})
    assert suite.name == path.stem
    assert all(make(variant.name, variant.settings) for variant in suite.methods)


def test_options_win_over_the_file(toml: Path) -> None:
    suite = merged_request(toml, {"seeds": [7], "tasks": None, "training": Training(epochs=1)})
    assert suite.seeds == [7]
    assert suite.tasks == ["mrpc", "stsb"]
    assert (suite.training.epochs, suite.training.lr) == (1, 2e-3)


def test_brackets_make_a_variant_with_a_row_of_its_own() -> None:
    text = "full,lora[rank=16,lr=1e-3,targets=query,value],lora"
    suite = make_suite(methods=parse_methods(text))
    labels = ["full", "lora[rank=16,lr=0.001,targets=query,value]", "lora"]
    assert [variant.label for variant in suite.methods] == labels
    assert suite.methods[1].settings == {"rank": 16, "targets": "query,value"}
    assert suite.methods[1].lr == 1e-3


def test_set_reaches_methods_and_training() -> None:
    sets = ["lora.rank=4", "lora.lr=5e-4", "training.epochs=2"]
    suite = merged_request(None, {"methods": parse_methods("lora,head")}, sets)
    assert suite.methods[0].settings == {"rank": 4}
    assert suite.methods[0].lr == 5e-4
    assert suite.methods[1].settings == {}
    assert suite.training.epochs == 2
    demo = merged_request(None, {}, ["lora.rank=4"])
    assert [variant.name for variant in demo.methods] == DEMO_METHODS


def test_a_table_may_have_its_settings_apart_as_a_record_has_them() -> None:
    table = {"name": "lora", "settings": {"rank": 4}, "lr": 5e-4}
    suites = [make_suite(methods=[given]) for given in (table, "lora[rank=4,lr=5e-4]")]
    (apart,), (flat,) = (suite.methods for suite in suites)
    assert (apart.name, apart.settings, apart.lr) == ("lora", {"rank": 4}, 5e-4)
    assert apart.settings == flat.settings
    (one,) = merged_request(None, {"methods": [table]}, ["lora.rank=8"]).methods
    assert one.settings == {"rank": 8}
    with pytest.raises(RequestError, match=r"the settings of lora give lr, which stands beside"):
        make_suite(methods=[table | {"settings": {"rank": 4, "lr": 1e-3}}])
    assert Variant.model_validate(apart.model_dump()) == apart


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"taks": ["mrpc"]}, "unknown setting of the suite 'taks'; did you mean 'tasks'"),
        (
            {"training": {"epoch": 3}},
            "setting of the suite.training 'epoch'; did you mean 'epochs'",
        ),
        (
            {"training": {"epoch": 3}, "taks": ["mrpc"]},
            "'taks'; did you mean 'tasks'\\? Allowed: name, model",
        ),
        ({"training": {"epochs": 0}}, "epochs must be greater than or equal to 1, got 0"),
        ({"training": {"epochs": "3"}}, "epochs must be a valid integer, got '3'"),
        ({"training": {"lr": -1.0}}, "lr must be greater than 0, got -1.0"),
        ({"training": {"lr": float("nan")}}, "lr must be"),
        (
            {"training": {"precision": "int3"}},
            "precision must be 'auto', 'fp32', 'bf16', 'int8', 'int7' or 'nf4', got",
        ),
        ({"training": {"warmup": 1.0}}, "warmup must be less than 1"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"seeds": [-1]}, "seeds.0 must be greater than or equal to 0"),
        ({"methods": []}, "methods must name at least one"),
        ({"methods": [{"rank": 4}]}, "a method is a name, or a table with a name"),
        ({"methods": "lora"}, "methods must be a list of names and tables, got 'lora'"),
        ({"training": 3}, "training must be a table, got 3"),
        ({"data": "x.csv"}, "data must be a table"),
        ({"tasks": 3}, "tasks must be a list of names, got 3"),
        ({"tasks": [3]}, "a task is a name"),
        ({"model": 3}, "model must be text, got 3"),
        ({"training": {"threads": 10**6}}, "threads must be less than or equal to 1024"),
    ],
)
def test_a_wrong_request_names_the_field(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_suite(**request_)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["rank=4"], "takes METHOD.FIELD=VALUE"),
        (["lorra.rank=4"], "did you mean 'lora'"),
        (["training.epoch=4"], "unknown setting"),
    ],
)
def test_wrong_assignments_are_refused(sets: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        merged_request(None, {}, sets)


def test_wrong_suite_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.toml can't be read: No such file"):
        merged_request(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("tasks = [")
    with pytest.raises(RequestError, match=r"bad\.toml is not TOML"):
        merged_request(tmp_path / "bad.toml", {})


def test_names_from_outside_are_no_paths() -> None:
    assert make_suite(model="../../etc/My Model", tasks=["similarity"]).name == (
        "my-model-similarity"
    )


# the grid


def suite(model: Path, **request: Any) -> Suite:
    request = {"tasks": ["similarity"], "methods": ["head", "lora"], "seeds": [0]} | request
    return make_suite(model=str(model), **request)


def test_cells_are_tasks_by_seeds_by_methods(tiny_model: Path) -> None:
    asked = suite(tiny_model, tasks=["similarity", "entailment"], seeds=[0, 5])
    cells = resolve(asked).cells
    assert [(c.task.name, c.seed, c.method.name) for c in cells] == [
        (task, seed, method)
        for task in ("similarity", "entailment")
        for seed in (0, 5)
        for method in ("head", "lora")
    ]
    assert len({cell.name for cell in cells}) == 8


def test_defaults_are_resolved_by_method_task_and_model(tiny_model: Path) -> None:
    head, full = resolve(suite(tiny_model, methods=["head", "full"])).cells
    assert full.training.lr == peftlab.FullFineTuning.default_lr
    assert full.training.head_lr == peftlab.FullFineTuning.default_head_lr
    assert full.precision.base == "fp32"
    assert head.training.max_length == 64  # the model takes no more
    asked = suite(tiny_model, methods=[{"name": "lora", "lr": 0.5}, "head"], training={"lr": 0.25})
    lora, head = resolve(asked).cells
    assert (lora.training.lr, head.training.lr) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("row", "training", "rate"),
    [
        ("head", {}, peftlab.HeadOnly.default_lr),
        ("head[lr=3e-4]", {"lr": 0.25}, 3e-4),
        ("head[head_lr=3e-4]", {"lr": 0.25}, 3e-4),
        ("head", {"lr": 0.25}, 0.25),
        ("head", {"head_lr": 0.25}, 0.25),
        ("head", {"lr": 0.5, "head_lr": 0.25}, 0.25),
    ],
)
def test_head_trains_at_the_rate_that_its_record_says(
    tiny_model: Path, row: str, training: dict[str, float], rate: float
) -> None:
    (cell,) = resolve(suite(tiny_model, methods=[row], training=training)).cells
    assert (cell.training.lr, cell.training.head_lr) == (rate, rate)
    model = peftlab.inject(peftlab.load_model(str(tiny_model))[0], "head")
    groups = peftlab.HeadOnly().parameter_groups(model, rate, rate, 0.0)
    assert {group["lr"] for group in groups} == {rate}


def test_a_record_says_whether_its_rate_was_asked_for(tiny_model: Path) -> None:
    default, asked = resolve(suite(tiny_model, methods=["lora", "lora[lr=0.5]"])).cells
    assert default.training.lr == peftlab.LoRA.default_lr
    assert (asked.training.lr, default.method.rate_from, asked.method.rate_from) == (
        *(0.5, "default", "asked for"),
    )


def test_a_regression_with_one_label_is_refused(tiny_model: Path) -> None:
    task = peftlab.Task(
        name="flat",
        kind="regression",
        metrics=("pearson",),
        train=Examples([("the cat",), ("a dog",)], [2.5, 2.5]),
        dev=Examples([("the bird",)], [2.5]),
    )
    with pytest.raises(RequestError, match=r"task flat: every label of train is 2\.5"):
        resolve(suite(tiny_model, tasks=[task]))


def test_identity_changes_with_whatever_is_asked_and_nothing_else(tiny_model: Path) -> None:
    def identity(**request: Any) -> str:
        return resolve(suite(tiny_model, methods=["lora"], **request)).cells[0].identity

    base = identity()
    assert identity() == base
    assert identity(name="another name") == base
    changed = {
        identity(seeds=[1]),
        identity(tasks=["entailment"]),
        identity(training={"epochs": 4}),
        identity(training={"lr": 2e-5}),
        identity(training={"threads": 7}),
        identity(training={"clip": 0.5}),
        resolve(suite(tiny_model, methods=[{"name": "lora", "rank": 4}])).cells[0].identity,
    }
    assert base not in changed
    assert len(changed) == 7


def test_what_no_request_names_is_part_of_the_identity_too(tiny_model: Path) -> None:
    """Weights, texts and code may change under a name; `auto` may choose another precision."""
    (cell,) = resolve(suite(tiny_model, methods=["lora"])).cells
    other = "0" * 64
    model = cell.model.model_copy(update={"sha256": other})
    task = cell.task.model_copy(update={"sha256": other})
    code, found = (
        cell.method.model_copy(update=changed)
        for changed in ({"source_sha256": other}, {"tuned": {"trials": 3}})
    )
    changes = [{"model": model}, {"task": task}, {"method": code}, {"method": found}]
    changes += [{"precision": replace(cell.precision, base="nf4")}]
    changes += [{"precision": replace(cell.precision, compute="another")}]
    names = {cell.model_copy(update=change).name for change in ({}, *changes)}
    assert len(names) == 7


def test_a_label_is_no_part_of_the_identity(tiny_model: Path) -> None:
    one = resolve(suite(tiny_model, methods=[{"name": "lora", "label": "A"}])).cells[0]
    two = resolve(suite(tiny_model, methods=[{"name": "lora", "label": "B"}])).cells[0]
    assert one.name == two.name


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"methods": ["lorra"]}, "unknown method 'lorra'; did you mean 'lora'"),
        ({"tasks": ["simmilarity"]}, "unknown task 'simmilarity'; did you mean 'similarity'"),
        (
            {"methods": [{"name": "lora", "rank": 99}]},
            r"method lora\[rank=99\] on model tiny: rank must be <=",
        ),
        ({"methods": [{"name": "lora", "targets": "qery"}]}, "did you mean 'query'"),
        (
            {"methods": ["lora", {"name": "lora", "label": "lora", "rank": 4}]},
            "two methods are labelled 'lora'",
        ),
        ({"methods": parse_methods("lora,lora[rank=8]")}, "ask for the same; leave one of them"),
        (
            {"methods": parse_methods("lora,lora[rank=8]"), "tune": {"trials": 2}},
            "ask for the same; leave one of them",
        ),
        (
            {"methods": parse_methods(f"lora,lora[lr={METHODS['lora'].default_lr}]")},
            "lora and lora.lr=.* ask for the same; leave one of them",
        ),
        ({"training": {"max_length": 65}}, "max_length must be <= 64 for this model, got 65"),
    ],
)
def test_what_can_be_wrong_is_found_before_training(
    request_: dict[str, Any], message: str, tiny_model: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        resolve(suite(tiny_model, **request_))


def test_a_model_whose_weights_do_not_fill_it_is_refused(
    tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(RequestError, match=r"don't fit its config\.json"):
        resolve(suite(folder))


def test_an_empty_split_is_refused(tiny_model: Path, tiny_task: peftlab.Task) -> None:
    with pytest.raises(RequestError, match="task tiny: its dev split is empty"):
        resolve(suite(tiny_model, tasks=[replace(tiny_task, dev=Examples([], []))]))


def test_a_task_is_hashed_once_for_all_of_its_cells(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison of 15 methods on 400,000 pairs took 45 s for that, and minutes where tuned."""
    hashed, sha256 = list[str](), Task.sha256

    def counted(task: Task) -> str:
        hashed.append(task.name)
        return sha256(task)

    monkeypatch.setattr(Task, "sha256", counted)
    methods = ["head", "lora", "bitfit"]
    grid = resolve(suite(tiny_model, methods=methods, seeds=[0, 1]))
    assert len(grid.cells) == 6 and hashed == ["similarity"]
    grid.with_rows({"similarity": grid.rows})
    assert hashed == ["similarity"]


def test_a_seed_given_twice_runs_once(tiny_model: Path) -> None:
    assert len(resolve(suite(tiny_model, seeds=[0, 0], methods=["head"])).cells) == 1


def test_tasks_and_a_file_are_not_both_taken() -> None:
    with pytest.raises(RequestError, match="not both"):
        make_suite(tasks=["mrpc"], data={"path": Path("x.csv"), "text": ["a"], "label": "b"})


def test_what_is_set_shows_in_the_label() -> None:
    asked = merged_request(None, {"methods": parse_methods("lora,lora[rank=4]")}, ["lora.rank=2"])
    assert [variant.label for variant in asked.methods] == ["lora[rank=2]"] * 2
    objects = make_suite(methods=[peftlab.LoRA(rank=2), peftlab.LoRA()])
    assert [variant.label for variant in objects.methods] == ["lora[rank=2]", "lora"]


def test_options_win_over_the_file_s_data(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('data = { path = "x.csv", text = ["a"], label = "b" }')
    assert merged_request(path, {}).data is not None
    assert merged_request(path, {"tasks": ["rte"]}).data is None


def test_several_rates_make_a_row_of_every_method_at_each(tiny_model: Path) -> None:
    suite = make_suite(
        model=str(tiny_model), methods=["full", {"name": "lora", "label": "L"}], rates=[1e-5, 4e-5]
    )
    assert [(row.label, row.lr) for row in suite.methods] == [
        ("full[lr=1e-05]", 1e-5),
        ("full[lr=4e-05]", 4e-5),
        ("L (lr 1e-05)", 1e-5),
        ("L (lr 4e-05)", 4e-5),
    ]
    fixed = make_suite(methods=["lora[lr=1e-3]", "head"], rates=[1e-4, 2e-4]).methods
    assert [row.lr for row in fixed] == [1e-3, 1e-4, 2e-4]
    assert len(make_suite(tasks=["similarity"], rates=[1e-4, 2e-4]).methods) == 2 * len(METHODS)


@pytest.mark.parametrize("rates", [["fast"], [0.0], [-1.0], 3])
def test_rates_must_be_positive_numbers(rates: Any) -> None:
    with pytest.raises(RequestError, match=r"lr|list of numbers"):
        make_suite(methods=["lora"], rates=rates)


def test_a_suite_file_may_ask_for_rates_and_for_tuning(tmp_path: Path) -> None:
    path = tmp_path / "rates.toml"
    path.write_text('methods = ["lora"]\nrates = [1e-4, 4e-4]\n')
    assert [row.lr for row in merged_request(path, {}).methods] == [1e-4, 4e-4]
    path.write_text('methods = ["lora"]\ntune = { trials = 6, space = ["lr", "rank"] }\n')
    tune = merged_request(path, {}).tune
    assert tune is not None
    assert (tune.trials, tune.validation, tune.space) == (6, 0.1, ["lr", "rank"])


def test_where_trials_find_the_rate_its_default_is_another_row(tiny_model: Path) -> None:
    rows = parse_methods(f"lora,lora[lr={METHODS['lora'].default_lr}]")
    asked = suite(tiny_model, tasks=["similarity"], methods=rows, tune={"trials": 2})
    assert len(resolve(asked).rows) == 2


def test_two_tasks_of_one_name_are_one_only_if_they_are_the_same(
    tiny_model: Path, tiny_task: Task
) -> None:
    twice = suite(tiny_model, tasks=[tiny_task, replace(tiny_task)])
    assert len(resolve(twice).cells) == len(twice.methods)
    other = replace(tiny_task, train=tiny_task.dev, source="file b/tiny.csv")
    with pytest.raises(RequestError, match=r"called 'tiny' and differ \(from python and file b"):
        resolve(suite(tiny_model, tasks=[tiny_task, other]))


def test_a_rate_that_is_asked_for_wins_over_a_file_s_rates(tmp_path: Path) -> None:
    file = tmp_path / "rates.toml"
    file.write_text('methods = ["lora"]\nrates = [1e-4, 4e-4]\n')
    assert [row.lr for row in merged_request(file, {}).methods] == [1e-4, 4e-4]
    asked = merged_request(file, {"training": Training.of({"lr": 1e-3})})
    assert [(row.lr, asked.training.lr) for row in asked.methods] == [(None, 1e-3)]


@pytest.mark.parametrize(
    "asked", [{"rates": [1e-4, 2e-4]}, {"training": Training.of({"lr": 1e-4})}]
)
def test_a_rate_that_no_row_takes_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('methods = ["lora[lr=1e-3]", { name = "full", lr = 2e-5 }]\n')
    with pytest.raises(RequestError, match=r"--lr .* changes nothing: .* \(0\.001, 2e-05\)"):
        merged_request(file, asked)
    file.write_text('methods = ["lora[lr=1e-3]", "full"]\n')
    assert 1e-3 in [row.lr for row in merged_request(file, asked).methods]
    with pytest.raises(RequestError, match="changes nothing"):  # --set gives rates of their own too
        merged_request(None, asked | {"methods": ["lora"]}, ["lora.lr=1e-2"])


def test_a_file_s_rates_that_no_row_takes_are_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "rates.toml"
    file.write_text('methods = ["lora[lr=1e-3]"]\nrates = [1e-4, 4e-4]\n')
    with pytest.raises(RequestError, match="changes nothing"):
        merged_request(file, {})
    with pytest.raises(RequestError, match="a method is a name, or a table with a name, got 5"):
        merged_request(None, {"methods": [5], "training": Training.of({"lr": 1e-3})})


def test_one_rate_twice_is_said_so() -> None:
    with pytest.raises(RequestError, match=r"rates .* name 0\.001 more than once"):
        make_suite(methods=["lora"], rates=[1e-3, 0.001])
    with pytest.raises(RequestError, match="methods must name at least one"):
        make_suite(methods=[], rates=[1e-3])


def test_a_wrong_tuning_space_is_said_in_one_sentence() -> None:
    tune = {"trials": 3, "space": ["lr", "rnak"]}
    with pytest.raises(RequestError, match=r"^the suite: unknown setting .*'rnak'; did you mean"):
        make_suite(methods=["lora"], tune=tune)


def test_a_file_s_way_to_tune_is_kept_where_options_say_nothing_of_it(tmp_path: Path) -> None:
    file = tmp_path / "tuned.toml"
    file.write_text('tune = { trials = 6, space = ["lr", "rank"] }\n')
    more, other = ({"tune": tune} for tune in ({"trials": 12}, {"validation": 0.2}))
    assert merged_request(file, more).tune == Tune(trials=12, space=["lr", "rank"])
    assert merged_request(file, other).tune == Tune(trials=6, space=["lr", "rank"], validation=0.2)
    with pytest.raises(RequestError, match="say with --tune N how many"):
        merged_request(None, other)


def test_a_setting_of_the_demo_s_is_still_the_demo() -> None:
    suite = merged_request(None, {}, ["lora.rank=4"])
    assert suite.training.epochs == DEMO_EPOCHS
    assert [variant.name for variant in suite.methods] == DEMO_METHODS
    assert suite.name == make_suite().name
    (lora,) = [variant for variant in suite.methods if variant.name == "lora"]
    assert lora.settings == {"rank": 4}
    assert merged_request(None, {}, ["training.epochs=5"]).training.epochs == 5


def test_a_rate_that_is_set_and_several_rates_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="several rates"):
        merged_request(None, {"rates": [1e-3, 2e-3]}, ["training.lr=5e-2"])


def test_checkpointing_that_the_model_has_not_is_refused_before_anything_trains(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = suite(tiny_model, methods=["head"], training={"checkpointing": True})
    assert len(resolve(asked).cells) == 1
    kind = "transformers.BertForSequenceClassification.supports_gradient_checkpointing"
    monkeypatch.setattr(kind, False)  # as of MPNet
    with pytest.raises(RequestError, match=r"head on model .* no activation checkpointing"):
        resolve(asked)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("train", "every example of train is of one class"),
        ("dev", "every example of dev has the answer 'cat'"),
    ],
)
def test_a_split_of_one_class_is_refused(
    split: str, said: str, tiny_model: Path, tiny_task: peftlab.Task
) -> None:
    one = Examples(getattr(tiny_task, split).texts[:3], [1, 1, 1])
    with pytest.raises(RequestError, match=said):
        resolve(suite(tiny_model, tasks=[replace(tiny_task, **{split: one})]))


def test_the_home_folder_is_known_of_wherever_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = make_suite(
        data={"path": Path("~/a.csv"), "text": ["t"], "label": "l", "dev": Path("~/b.csv")}
    )
    assert made.data is not None
    assert (made.data.path, made.data.dev) == (tmp_path / "a.csv", tmp_path / "b.csv")


def test_the_home_folder_of_nobody_is_explained() -> None:
    with pytest.raises(RequestError, match=r"~nobody99/a\.csv can't be found"):
        make_suite(data={"path": Path("~nobody99/a.csv"), "text": ["t"], "label": "l"})


def test_a_dev_of_one_number_is_a_dev_by_an_error(tiny_model: Path) -> None:
    texts = [(f"text {i}",) for i in range(20)]
    train, dev = Examples(texts, [float(i) for i in range(20)]), Examples(texts[:3], [0.0] * 3)
    task = Task("sizes", "regression", ("mae",), train, dev)
    assert resolve(suite(tiny_model, tasks=[task])).cells
    with pytest.raises(RequestError, match=r"every example of dev has the answer 0\.0"):
        resolve(suite(tiny_model, tasks=[replace(task, metrics=("pearson",))]))


def test_two_tasks_of_one_name_that_are_cut_elsewhere_are_two(
    tiny_model: Path, tiny_task: Task
) -> None:
    """Else the second one's texts would be cut where the first one's are, without a word."""
    other = replace(tiny_task, max_length=16)
    suite = make_suite(model=str(tiny_model), tasks=[tiny_task, other])
    with pytest.raises(RequestError, match="two tasks are called 'tiny' and differ"):
        resolve(suite)
