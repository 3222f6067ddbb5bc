"""The command line of a cell: read as the command line reads it, it asks for the same."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from pydantic import ValidationError

from peftlab.methods import METHODS, parse_methods
from peftlab.naming import columns
from peftlab.report.command import command, commands, method, quoted
from peftlab.settings import Training


def options(line):
    words = shlex.split(line)
    assert words[:2] == ["peftlab", "compare"]
    found = {}
    for word in words[2:]:
        if word.startswith("--"):
            name = word
            found[name] = True
        else:
            found[name] = word
    return found


DOUBLE = ["lora[rank=8,alpha=16.0]", "two words", "it's", "C:\\data\\a b.csv", ""]
SINGLE = [
    "`id`",
    "$(id)",
    "$HOME",
    "a !!",
    "100 %",
    'said "so"',
    "“so”",
    "a\nb",
    "a b\\",
    "\\\\host",
]


@pytest.mark.parametrize(
    ("word", "mark"), [("plain", "p"), *((w, '"') for w in DOUBLE), *((w, "'") for w in SINGLE)]
)
def test_a_shell_reads_a_word_as_it_is(word, mark):
    """What one of the shells would look into stands in single quotes, which cmd.exe lacks."""
    said = quoted(word)
    done = subprocess.run(["bash", "-c", f"printf %s {said}"], capture_output=True, text=True)
    assert done.stdout == word and said.startswith(mark)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_s_settings_are_read_back(record, name):
    settings = METHODS[name]().settings
    one = record(name)
    part = one.method.model_copy(update={"settings": settings})
    one = one.model_copy(update={"method": part, "training": one.training | {"lr": 3e-5}})
    (given,) = parse_methods(method(one))
    assert given == {
        "name": name,
        **{key: value for key, value in settings.items() if value is not None},
        "lr": 3e-5,
        "head_lr": 1e-3,
    }


@pytest.mark.parametrize(
    "value",
    [
        *("16", "true", "1e-3", "", "a b", "a,b=c", "x]", "[x", "a[0", 'say "a"', "it's", "$(ls)"),
        *("query,value", "layer.[01].query", "ü", "inf", "-1", "2024-01-01"),
        *(0.1, 1e-05, 1e22, 3, True, False, [1, 2], ["a", "b"]),
    ],
)
def test_any_value_is_read_back_as_it_was(record, value):
    one = record(settings={"targets": value})
    line = options(command(one))["--methods"]
    (given,) = parse_methods(line)
    assert given["targets"] == value and type(given["targets"]) is type(value)


def test_training_is_asked_for_as_it_was(record):
    training = {"epochs": 7, "max_length": 64, "parts": False, "clip": 0.5, "device": "cpu"}
    found = options(command(record(training=training, seed=3)))
    assert (found["--seeds"], found["--epochs"], found["--clip"]) == ("3", "7", "0.5")
    assert found["--no-parts"] is True and found["--precision"] == "fp32"
    assert "--batch-size" not in found  # 32 is what it is by default


def test_a_base_that_is_trained_is_asked_for_in_what_products_are_made_in(record):
    held = [(base, "bf16") for base in ("fp32", "nf4", "int8", "int7")] + [("fp32", "fp32")]
    lines = [command(record(precision=base, training={"compute": c})) for base, c in held]
    assert [options(line)["--precision"] for line in lines] == [
        "bf16",
        "nf4",
        "int8",
        "int7",
        "fp32",
    ]


def test_every_setting_of_a_training_has_an_option(record):
    for name, field in Training.model_fields.items():
        for value in ("x", 7, 0.5, not field.default, "bf16", "grouped", "cuda", "balanced"):
            try:
                Training.model_validate({name: value})
            except ValidationError:
                continue
            changes = {"precision": value} if name == "precision" else {"training": {name: value}}
            line = command(record(**changes))
            assert f"-{name.replace('_', '-')}" in line or f"{name}={value}" in line


def test_own_data_is_named_by_the_suite_that_asked_for_it(record):
    one = record(task="tickets")
    task = one.task.model_copy(update={"source": "file /data/tickets.csv"})
    one = one.model_copy(update={"task": task})
    assert command(one) is None
    data = {"path": "/data/my tickets.csv", "text": ["a", "b"], "label": "y", "dev": None}
    suite = {"model": "mpnet", "data": data, "cells": [{"cell": one.cell}], "metric": "accuracy"}
    found = options(commands([one], [{"cells": [{"cell": one.cell}]}, suite])[one.cell])
    assert found["--data"] == "/data/my tickets.csv" and found["--text"] == "a,b"
    assert found["--model"] == "mpnet" and found["--metric"] == "f1" and "--tasks" not in found


def of_hub(record, text, source="hub me/tickets/en@0123abcd, a fifth of train"):
    one = record(task="tickets")
    one = one.model_copy(update={"task": one.task.model_copy(update={"source": source})})
    data = {"path": "hub:me/tickets/en@main", "text": text, "label": "y", "dev": None}
    return command(one, {"data": data, "judge_on": "train"})


def test_a_data_set_of_the_hub_is_asked_for_at_its_commit(record):
    found = options(of_hub(record, ["a"]))
    assert found["--data"] == "hub:me/tickets/en@0123abcd" and found["--judge-on"] == "train"


@pytest.mark.parametrize("text", [["a,b"], ["a", "b, c"], ["a[", "b]"], ['say "a"'], ['"']])
def test_any_column_is_read_back_as_it_was(record, text):
    assert columns(options(of_hub(record, text))["--text"]) == text


@pytest.mark.parametrize("text", [[" a"], ['"a"'], ['a, "b"']])
def test_a_column_that_text_can_not_spell_can_t_be_asked_for(record, text):
    assert of_hub(record, text) is None


def test_what_was_handed_over_in_python_has_no_command(record):
    model = {"name": "mine", "revision": None, "sha256": None}
    assert command(record(model=model)) is None
    for source in ("python", "synthetic reviews", "folder ~/data/mine", "hub me/tickets@01"):
        task = record().task.model_copy(update={"source": source})
        assert commands([record().model_copy(update={"task": task})], []) == {}


def test_files_of_a_task_and_of_a_method_are_asked_for(record):
    part = record().method.model_copy(update={"source_sha256": "ab"})
    task = record().task.model_copy(update={"source": "folder glue, a fifth of train"})
    one = record().model_copy(update={"method": part, "task": task})
    found = options(command(one, {"data_dir": "/data/glue"}))
    assert found["--data-dir"] == "/data/glue" and found["--judge-on"] == "train"
    assert found["--plugin"] == "FILE.py"
    assert options(command(one, {}))["--data-dir"] == "DIR"  # of a cell that no suite lists
