"""Answers are the labels as the training data had them."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import peftlab
from peftlab.api import inference
from peftlab.api.inference import dev_outputs, predict_file
from peftlab.errors import RequestError
from peftlab.tasks import Examples, Task

FAST: dict[str, Any] = {"epochs": 1, "batch_size": 8, "max_length": 16, "quiet": True}
TEXTS = ["the cat sees", "a dog runs"]


def table(labels: list[Any]) -> dict[str, list[Any]]:
    return {"text": [f"{text} {i}" for i in range(10) for text in TEXTS], "label": labels * 10}


@pytest.mark.parametrize("labels", [[1, 0], [True, False], [0.5, 1.5], ["1", "0"], ["cat", "dog"]])
def test_a_predicted_class_equals_a_label_of_the_table(
    labels: list[Any], tiny_model: Path, tmp_path: Path
) -> None:
    """For labels 0 and 1 the answers were "0" and "1", which equal no label: accuracy 0."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    task = peftlab.make_task(table(labels), kind="classes")
    peftlab.train(model, tokenizer, task, "lora", **FAST)
    answers = peftlab.predict(model, tokenizer, TEXTS)
    assert {type(answer) for answer in answers} == {type(labels[0])}
    assert set(answers) <= set(labels)

    peftlab.save(model, tmp_path / "kept")
    loaded, _ = peftlab.load(tmp_path / "kept")
    assert peftlab.predict(loaded, tokenizer, TEXTS) == answers

    names = [f"{label} class" for label in labels]
    loaded.config.id2label = dict(enumerate(names))
    peftlab.save(loaded, tmp_path / "renamed")
    for renamed in (loaded, peftlab.load(tmp_path / "renamed")[0]):
        assert set(peftlab.predict(renamed, tokenizer, TEXTS)) <= set(names)


@pytest.mark.parametrize(("labels", "dtype"), [([1, 0], "int64"), ([True, False], "bool")])
def test_a_file_s_predictions_are_of_its_labels_type(
    labels: list[Any], dtype: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = table(labels)
    lines = [json.dumps({"text": t, "label": y}) for t, y in zip(*rows.values(), strict=True)]
    Path("rows.jsonl").write_text("\n".join(lines))
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.train(model, tokenizer, peftlab.make_task(rows), "head", out="mine", **FAST)
    for suffix in ("jsonl", "csv", "parquet"):
        predict_file(Path("mine"), Path("rows.jsonl"), Path(f"answers.{suffix}"), ["text"])
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert {type(answer["prediction"]) for answer in answers} == {type(labels[0])}
    for frame in (pd.read_parquet("answers.parquet"), pd.read_csv("answers.csv")):
        assert frame["prediction"].dtype == dtype
    written = pd.read_csv("answers.csv", dtype=str)  # the columns of scores have the same spelling
    assert all(f"score_{value}" in written for value in written["prediction"])


def test_beside_labels_that_are_text_a_predicted_class_is_text(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a CSV in JSON lines the row had "1" and the prediction was 1."""
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(table([1, 0])).to_csv("rows.csv", index=False)
    model, tokenizer = peftlab.load_model(str(tiny_model))
    task = peftlab.make_task(pd.read_csv("rows.csv"))
    peftlab.train(model, tokenizer, task, "head", out="mine", **FAST)
    predict_file(Path("mine"), Path("rows.csv"), Path("answers.jsonl"), ["text"])
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert {answer["label"] for answer in answers} == {"0", "1"}
    assert {answer["prediction"] for answer in answers} <= {"0", "1"}


def test_threads_take_turns_with_a_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a web server: what one thread's engine had put into the model another one used."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    original = inference.outputs
    inside: list[int] = []
    most: list[int] = []

    def outputs(*given: Any, **options: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        try:
            return original(*given, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(inference, "outputs", outputs)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(peftlab.predict, model, tokenizer, TEXTS) for _ in range(4)]
        answers = [one.result() for one in asked]
    assert most == [1] * 4 and answers == [answers[0]] * 4
    copied = copy.deepcopy(model)
    assert peftlab.predict(copied, tokenizer, TEXTS) == answers[0]


def test_a_broken_model_has_no_score(tiny_model: Path, tiny_task: Task) -> None:
    """Of outputs that are NaN the first class was the answer: the score of a constant one."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    head = next(parameter for name, parameter in model.named_parameters() if "classifier" in name)
    head.data.fill_(float("nan"))
    with pytest.raises(RequestError, match="not all numbers"):
        peftlab.evaluate(model, tokenizer, tiny_task)


def test_a_dev_with_one_answer_is_refused_as_by_a_comparison(
    tiny_model: Path, tiny_task: Task
) -> None:
    """Perfect answers were said to have collapsed."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    dev = Examples([("the cat sees",)], [0])
    with pytest.raises(RequestError, match="give a dev with several"):
        peftlab.train(model, tokenizer, dataclasses.replace(tiny_task, dev=dev), "lora", **FAST)


def test_three_classes_in_another_order_are_matched_by_their_names(
    tiny_model: Path, tiny_task: Task
) -> None:
    """Of two, whichever is looked up in the other's list comes to the same."""
    rows = dataclasses.replace(tiny_task.dev, labels=[i % 3 for i in range(len(tiny_task.dev))])
    task = dataclasses.replace(tiny_task, labels=("a", "b", "c"), train=rows, dev=rows)
    model, tokenizer = peftlab.load_model(str(tiny_model), num_labels=3)
    model.config.id2label = dict(enumerate(task.labels))
    outputs = dev_outputs(model, tokenizer, task)
    turned = dataclasses.replace(task, labels=("C", "A", "B"))
    assert torch.equal(dev_outputs(model, tokenizer, turned), outputs[:, [2, 0, 1]])
