"""A model that transformers loaded: its adapter says what it belongs to and is loaded again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

import peftlab
from peftlab.adapters import base_of, read_card
from peftlab.atomic import WEIGHTS
from peftlab.models import state_of
from peftlab.tasks import Task


@pytest.fixture
def theirs(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model and its tokenizer as transformers loads them."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_model)


def test_a_model_of_from_pretrained_is_saved_and_loaded_again(
    theirs: tuple[Any, Any], tiny_model: Path, tiny_task: Task, logits: Any, tmp_path: Path
) -> None:
    model, tokenizer = theirs
    peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8)
    peftlab.save(model, tmp_path / "adapter")
    card = read_card(tmp_path / "adapter")
    assert card is not None
    assert card.base.folder == str(tiny_model.resolve())
    assert card.base.sha256 == state_of(peftlab.load_model(str(tiny_model))[0]).source.sha256
    again, its_tokenizer = peftlab.load(tmp_path / "adapter")
    assert torch.equal(logits(again, its_tokenizer), logits(model.eval(), tokenizer))


def test_a_folder_given_relatively_is_found_from_anywhere(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model.name)
    peftlab.inject(model, "lora")
    peftlab.save(model, tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    peftlab.load("adapter")


def test_a_hub_model_that_is_not_at_hand_is_recorded_by_its_name(
    theirs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, _ = theirs
    model.name_or_path = "somebody/some-model"
    model.config._commit_hash = "abc"
    peftlab.inject(model, "lora")
    peftlab.save(model, tmp_path / "adapter")
    card = read_card(tmp_path / "adapter")
    assert card is not None
    assert (card.base.name, card.base.folder) == ("somebody/some-model", None)
    assert (card.base.revision, card.base.sha256) == ("abc", None)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somebody/some-model"
    assert (tmp_path / "adapter" / WEIGHTS).is_file()


def test_a_base_without_files_is_refused(
    theirs: tuple[Any, Any], tiny_model: Path, make_tiny_model: Any, tmp_path: Path
) -> None:
    made = AutoModelForSequenceClassification.from_config(BertConfig.from_pretrained(tiny_model))
    made.name_or_path = ""
    peftlab.inject(made, "lora")
    with pytest.raises(peftlab.RequestError, match="made from a configuration"):
        peftlab.save(made, tmp_path / "adapter")
    bare = make_tiny_model(tmp_path / "bare")
    for file in bare.glob("token*"):
        file.unlink()
    model = AutoModelForSequenceClassification.from_pretrained(bare)
    peftlab.inject(model, "lora")
    with pytest.raises(peftlab.RequestError, match="no tokenizer"):
        peftlab.save(model, tmp_path / "adapter")


def test_another_precision_than_peftlab_s_is_refused(theirs: tuple[Any, Any]) -> None:
    model, _ = theirs
    with pytest.raises(peftlab.RequestError, match=r"float16.*fp32 or bf16"):
        peftlab.inject(model.half(), "lora")


def test_a_head_of_lower_precision_is_trained_in_fp32(
    tiny_model: Path, tiny_task: Task, logits: Any, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8)
    assert {p.dtype for p in model.classifier.parameters()} == {torch.float32}
    peftlab.save(model, tmp_path / "adapter")
    again, _ = peftlab.load(tmp_path / "adapter")
    assert torch.equal(logits(again, tokenizer), logits(model.eval(), tokenizer))


def test_peftlab_finds_the_bundled_model_by_its_name_where_its_folder_is_another(
    tmp_path: Path, logits: Any
) -> None:
    model, tokenizer = peftlab.load_model("minilm")
    peftlab.inject(model, "lora")
    peftlab.save(model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    elsewhere = json.loads(path.read_text()) | {"base_model_name_or_path": "/another/machine"}
    path.write_text(json.dumps(elsewhere))
    again, _ = peftlab.load(tmp_path / "adapter")
    assert torch.equal(logits(again, tokenizer), logits(model.eval(), tokenizer))


NAMES = {0: "negative", 1: "positive"}


def test_label_names_survive_our_save_and_load(
    theirs: tuple[Any, Any], tiny_task: Task, tmp_path: Path
) -> None:
    """Named by hand before training anything, and renamed after it."""
    model, tokenizer = theirs
    model.config.id2label = dict(NAMES)
    peftlab.inject(model, "lora")
    peftlab.save(model, tmp_path / "untrained")
    again, _ = peftlab.load(tmp_path / "untrained")
    assert again.config.id2label == NAMES
    assert again.config.label2id == {"negative": 0, "positive": 1}
    peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8)
    assert model.config.id2label == {0: "other", 1: "cat"}
    model.config.id2label = {"0": "no cat", "1": "cat"}
    peftlab.save(model, tmp_path / "renamed")
    again, _ = peftlab.load(tmp_path / "renamed")
    assert again.config.id2label == {0: "no cat", 1: "cat"}
    assert state_of(again).task_card.labels == ["no cat", "cat"]
    assert set(peftlab.predict(again, tokenizer, ["the cat sees"])) <= {"no cat", "cat"}


def test_label_names_survive_transformers_save_and_load(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8)
    peftlab.merge(model)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert theirs.config.id2label == {0: "other", 1: "cat"}
    ours, _ = peftlab.load_model(str(tmp_path / "plain"), num_labels=2)
    assert ours.config.id2label == {0: "other", 1: "cat"}
    assert set(peftlab.predict(ours, tokenizer, ["the cat sees"])) <= {"other", "cat"}


def test_a_folder_that_is_gone_is_recorded_by_where_it_was(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    peftlab.inject(model, "lora")
    base = base_of(model)
    assert (base.part.folder, base.part.sha256) == (str(tmp_path / "model"), None)
    peftlab.save(model, tmp_path / "adapter")
    peftlab.load(tmp_path / "adapter", base=str(tiny_model))


def test_a_model_of_a_relative_folder_is_saved_and_merged_from_anywhere(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    model, _ = peftlab.load_model(f"./{tiny_model.name}")
    peftlab.inject(model, "lora")
    monkeypatch.chdir(tmp_path)
    peftlab.save(model, tmp_path / "adapter")
    peftlab.load(tmp_path / "adapter")
    peftlab.merge(model)
