"""An adapter saved and loaded is the same model, in any process, and no other base will do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, MptConfig

import peftlab
from peftlab.adapters import read_card
from peftlab.api.export import merge_folder
from peftlab.layers import adapter_state
from peftlab.methods import METHODS, InPeft, injected
from peftlab.tasks import Task
from tiny import tiny


@pytest.mark.parametrize("name", METHODS)
def test_save_and_load_give_the_same_bits(
    name: str, trained: Any, logits: Any, tmp_path: Path
) -> None:
    model, tokenizer = trained(name)
    peftlab.save(model, tmp_path / "adapter")
    again, its_tokenizer = peftlab.load(tmp_path / "adapter")
    assert torch.equal(logits(again, its_tokenizer), logits(model, tokenizer))
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "peftlab.json", "tokenizer.json"} <= files
    assert ("adapter_config.json" in files) == issubclass(METHODS[name], InPeft)
    assert again.config.id2label == {0: "red", 1: "green", 2: "blue"}
    assert injected(again) == injected(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trainable


def test_bitfit_on_biases_of_gpt2_is_saved_and_loaded(
    logits: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """Its Conv1D keeps zeros in the place of the bias that BitFit trains."""
    base, folder = tiny("gpt2", torch.float32), tmp_path / "gpt2"
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # transformers starts them at zero
    base.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    model, tokenizer = peftlab.load_model(str(folder), 2, "fp32")
    peftlab.inject(model, "bitfit")
    peftlab.save(model, tmp_path / "adapter")
    again, _ = peftlab.load(tmp_path / "adapter")
    assert torch.equal(logits(again, tokenizer), logits(model.eval(), tokenizer))


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", ["lora", "vera", "dora", "houlsby"])
def test_a_base_of_lower_precision_is_held_so_again(
    name: str, precision: str, trained: Any, logits: Any, tmp_path: Path
) -> None:
    model, tokenizer = trained(name, precision)
    peftlab.save(model, tmp_path / "adapter")
    again, _ = peftlab.load(tmp_path / "adapter")
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same_bits(trained: Any, logits: Any, tmp_path: Path) -> None:
    folders = []
    for name in METHODS:
        model, tokenizer = trained(name)
        peftlab.save(model, tmp_path / name)
        folders.append(tmp_path / name)
        save_file({"logits": logits(model, tokenizer)}, tmp_path / f"{name}.safetensors")
    texts = logits.__globals__["TEXTS"]
    code = f"""
import sys, torch, peftlab
from safetensors.torch import load_file
torch.set_num_threads({torch.get_num_threads()})
for folder in {[str(folder) for folder in folders]!r}:
    model, tokenizer = peftlab.load(folder)
    inputs = tokenizer({texts!r}, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits.float()
    print(torch.equal(found, load_file(folder + ".safetensors")["logits"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * len(METHODS), done.stderr


def test_the_card_says_what_it_is_and_whose(trained: Any, tiny_model: Path, tmp_path: Path) -> None:
    model, _ = trained("lora")
    peftlab.save(model, tmp_path / "adapter")
    card = read_card(tmp_path / "adapter")
    assert card is not None
    assert card.method.settings["rank"] == 3
    assert card.base.folder == str(tiny_model.resolve())
    assert len(card.base.sha256) == 64
    assert card.task is not None
    assert card.task.columns == ["sentence"]


def test_another_base_is_refused(trained: Any, make_tiny_model: Any, tmp_path: Path) -> None:
    model, _ = trained("lora")
    peftlab.save(model, tmp_path / "adapter")
    other = make_tiny_model(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    key = next(iter(weights))
    save_file(weights | {key: weights[key] + 1e-3}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(peftlab.RequestError, match="belongs to another base"):
        peftlab.load(tmp_path / "adapter", base=str(other))


def test_a_base_that_moved_is_given_by_hand(
    trained: Any, logits: Any, tiny_model: Path, tmp_path: Path
) -> None:
    model, tokenizer = trained("lora")
    peftlab.save(model, tmp_path / "adapter")
    shutil.copytree(tiny_model, tmp_path / "moved")
    again, _ = peftlab.load(tmp_path / "adapter", base=str(tmp_path / "moved"))
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, k: t.pop(k), "missing"),
        (lambda t, k: t.update(nonsense=t[k].clone()), "unexpected .*nonsense"),
        (lambda t, k: t.update({k: t[k][:1]}), "of shape"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Any, message: str, trained: Any, tmp_path: Path
) -> None:
    for name in ("lora", "houlsby"):
        model, _ = trained(name)
        peftlab.save(model, tmp_path / name)
        path = tmp_path / name / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors, next(key for key in tensors if "classifier" not in key))
        save_file(tensors, path)
        with pytest.raises(peftlab.RequestError, match=message):
            peftlab.load(tmp_path / name)


def test_a_frozen_head_is_not_saved_in_silence(trained: Any, tmp_path: Path) -> None:
    model, _ = trained("lora")
    model.classifier.weight.requires_grad_(False)
    with pytest.raises(peftlab.RequestError, match=r"head is not all trained.*classifier\.weight"):
        peftlab.save(model, tmp_path / "adapter")


def test_added_tokens_are_not_lost_in_silence(
    tiny_model: Path, logits: Any, tmp_path: Path
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model), precision="fp32")
    tokenizer.add_tokens(["zebra"])
    model.resize_token_embeddings(len(tokenizer))
    peftlab.inject(model, "lora")
    with pytest.raises(peftlab.RequestError, match=r"knows 23 tokens and its base .* knows 22; an"):
        peftlab.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    again, tokenizer_again = peftlab.load_model(str(tiny_model), precision="fp32")
    tokenizer_again.add_tokens(["zebra"])
    again.resize_token_embeddings(len(tokenizer_again))
    again.save_pretrained(tmp_path / "base")
    tokenizer_again.save_pretrained(tmp_path / "base")
    ready, tokenizer = peftlab.load_model(tmp_path / "base", precision="fp32")
    peftlab.save(peftlab.inject(ready, "lora"), tmp_path / "adapter")
    loaded, its_tokenizer = peftlab.load(tmp_path / "adapter")
    assert len(its_tokenizer) == 23
    assert torch.equal(logits(loaded, its_tokenizer), logits(ready.eval(), tokenizer))


def test_what_can_not_be_saved_is_explained(trained: Any, tiny_model: Path, tmp_path: Path) -> None:
    plain, _ = peftlab.load_model(str(tiny_model))
    with pytest.raises(peftlab.RequestError, match="inject one before saving"):
        peftlab.save(plain, tmp_path / "adapter")
    merged, _ = trained("lora")
    peftlab.merge(merged)
    with pytest.raises(peftlab.RequestError, match="unmerge it to save its adapter"):
        peftlab.save(merged, tmp_path / "adapter")
    with pytest.raises(peftlab.RequestError, match="lora is trained for one rank"):
        peftlab.save(trained("lora")[0], tmp_path / "adapter", rank=2)


def test_a_folder_with_other_things_is_left_alone(trained: Any, tmp_path: Path) -> None:
    model, _ = trained("head")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(peftlab.RequestError, match="holds something that is not an adapter"):
        peftlab.save(model, tmp_path / "precious")
    peftlab.save(model, tmp_path / "mine")
    peftlab.save(model, tmp_path / "mine")  # its own is replaced
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_interrupted_save_leaves_the_old_adapter(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = trained("lora")
    peftlab.save(model, tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("peftlab.adapters.folder.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        peftlab.save(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_old_adapter_comes_back_if_the_swap_fails(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = trained("lora")
    peftlab.save(model, tmp_path / "adapter")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(peftlab.RequestError, match="can't be written: Input/output error"):
        peftlab.save(model, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    peftlab.load(tmp_path / "adapter")


def test_a_user_s_own_file_in_an_adapter_s_folder_is_not_deleted(
    trained: Any, tmp_path: Path
) -> None:
    model, _ = trained("lora")
    peftlab.save(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "answers.csv").write_text("mine")
    with pytest.raises(peftlab.RequestError, match=r"not an adapter of peftlab's \(answers\.csv\)"):
        peftlab.save(model, tmp_path / "adapter")
    with pytest.raises(peftlab.RequestError, match=r"adapter holds something already \(.*\); give"):
        merge_folder(tmp_path / "adapter", tmp_path / "adapter")


def test_a_link_is_followed(trained: Any, tmp_path: Path) -> None:
    model, _ = trained("lora")
    peftlab.save(model, tmp_path / "first")
    (tmp_path / "link").symlink_to("first")
    peftlab.save(model, tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "link"]
    assert (tmp_path / "link").is_symlink()


def test_a_paged_optimizer_is_no_matter_for_loading(trained: Any, tmp_path: Path) -> None:
    model, _ = trained("qlora", optimizer="paged")
    peftlab.save(model, tmp_path / "adapter")
    again, _ = peftlab.load(tmp_path / "adapter")
    assert injected(again).settings["optimizer"] == "paged"


def test_training_goes_on_from_a_loaded_adapter_on_nf4_with_the_same_bits(
    trained: Any, logits: Any, tiny_task: Any, tmp_path: Path
) -> None:
    model, tokenizer = trained("qlora", num_labels=2)
    peftlab.save(model, tmp_path / "first")
    again, _ = peftlab.load(tmp_path / "first")
    peftlab.train(again, tokenizer, tiny_task, injected(again), epochs=1, batch_size=8)
    peftlab.save(again, tmp_path / "second")
    third, _ = peftlab.load(tmp_path / "second")
    assert torch.equal(logits(third, tokenizer), logits(again, tokenizer))
    assert not torch.equal(logits(third, tokenizer), logits(model, tokenizer))


def test_a_merged_model_is_not_trained_in_silence(trained: Any, tiny_task: Any) -> None:
    model, tokenizer = trained("lora", num_labels=2)
    peftlab.merge(model)
    with pytest.raises(peftlab.RequestError, match="no adapter is left in it to train"):
        peftlab.train(model, tokenizer, tiny_task, injected(model))


def test_shared_tensors_are_saved_once(trained: Any) -> None:
    model, _ = trained("vera")
    shared = [name for name in adapter_state(model) if "shared" in name]
    assert len(shared) == 2


def test_lora_drop_remembers_what_is_shared(trained: Any, logits: Any, tmp_path: Path) -> None:
    model, tokenizer = trained("lora-drop")
    names = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    injected(model).restore(model, {"shared": [names]})
    peftlab.save(model, tmp_path / "adapter")
    again, _ = peftlab.load(tmp_path / "adapter")
    first, second = (again.get_submodule(name) for name in names)
    assert first.lora_A is second.lora_A
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))


def test_dylora_is_cut_to_a_rank(trained: Any, logits: Any, tmp_path: Path) -> None:
    model, tokenizer = trained("dylora")
    for rank in injected(model).ranks(model):
        wanted = logits(model, tokenizer)
        peftlab.save(model, tmp_path / "adapter", rank=rank)
        again, _ = peftlab.load(tmp_path / "adapter")
        torch.testing.assert_close(logits(again, tokenizer), wanted, rtol=0, atol=1e-6)
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (rank, 16.0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "adapter_model.safetensors is wanted, and it has none"),
        (["adapter_model.bin"], "only pickle weights"),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(
    files: list[str], message: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(peftlab.RequestError, match=message):
        peftlab.load(tmp_path)


def test_a_regression_is_one_to_transformers_too(trained: Any, tmp_path: Path) -> None:
    """Its pipeline takes the sigmoid of one output whose configuration does not say so."""
    model, _ = trained("lora", num_labels=1)
    peftlab.save(model, tmp_path / "adapter")
    again, _ = peftlab.load(tmp_path / "adapter")
    assert again.config.problem_type == "regression"
    peftlab.save(trained("lora")[0], tmp_path / "classes")
    classes, _ = peftlab.load(tmp_path / "classes")
    assert classes.config.problem_type == "single_label_classification"


def test_the_tokenizer_that_it_was_trained_with_is_saved(
    tiny_model: Path, tiny_task: Any, tmp_path: Path
) -> None:
    """Spare rows of an embedding take tokens without a change of its size."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    model.resize_token_embeddings(40)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model, tokenizer = peftlab.load_model(tmp_path / "base")
    tokenizer.add_tokens(["zebra"])
    tokenizer.truncation_side = "left"
    out = tmp_path / "out"
    peftlab.train(model, tokenizer, tiny_task, "head", epochs=1, batch_size=8, out=out)
    _, again = peftlab.load(out)
    assert again.tokenize("zebra") == ["zebra"] and again.truncation_side == "left"
    written = json.loads((out / "tokenizer.json").read_text())
    assert written["truncation"] is written["padding"] is None


@pytest.mark.parametrize(
    ("method", "name", "trains", "message"),
    [
        ("lora", "bert.embeddings.LayerNorm.bias", True, "trains, which is none of lora's"),
        (
            "lora-drop",
            "bert.embeddings.LayerNorm.bias",
            True,
            "trains, which is none of lora-drop's",
        ),
        ("bitfit", "bert.embeddings.LayerNorm.bias", False, "is frozen, and bitfit trains it"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(
    method: str, name: str, trains: bool, message: str, trained: Any, tmp_path: Path
) -> None:
    model, _ = trained(method)
    model.get_parameter(name).requires_grad_(trains)
    with pytest.raises(peftlab.RequestError, match=rf"{re.escape(name)} {message}"):
        peftlab.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_what_could_not_be_saved_is_found_before_it_is_trained(
    tiny_model: Path, tiny_task: Any, tmp_path: Path, capsys: Any
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.inject(model, "lora").bert.embeddings.LayerNorm.bias.requires_grad_()
    with pytest.raises(peftlab.RequestError, match="none of lora's"):
        peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, out=tmp_path / "out")
    assert "lora" not in capsys.readouterr().err


def test_something_else_than_a_tokenizer_is_not_saved_as_one(trained: Any, tmp_path: Path) -> None:
    model, _ = trained("lora")
    with pytest.raises(peftlab.RequestError, match="tokenizer must be the model's own"):
        peftlab.save(model, tmp_path / "adapter", tokenizer="x")


def test_a_part_that_is_compiled_by_a_wrapper_is_named_and_answers(
    tiny_model: Path, tiny_task: Any
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    before = peftlab.evaluate(model, tokenizer, tiny_task)
    model.bert.encoder = torch.compile(model.bert.encoder, backend="eager")
    assert peftlab.evaluate(model, tokenizer, tiny_task) == before
    with pytest.raises(peftlab.RequestError, match=r"wrapper; .*bert.encoder\"\)\.compile"):
        peftlab.inject(model, "lora")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("method", ["lora", "houlsby", "bitfit", "pissa"])
def test_a_base_trained_further_in_memory_is_not_saved_as_that_of_its_files(
    method: str, precision: str, tiny_model: Path, tmp_path: Path
) -> None:
    model, _ = peftlab.load_model(tiny_model, precision=precision)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] *= 1.1  # type: ignore[operator]
    peftlab.inject(model, method)
    with pytest.raises(peftlab.RequestError, match=r"word_embeddings.weight is frozen .* furth"):
        peftlab.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_loading_decomposes_no_weight(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's tensors came in place of what took a third of a second for each layer of 768."""
    model, _ = peftlab.load_model(tiny_model)
    peftlab.inject(model, "pissa")
    peftlab.save(model, tmp_path / "adapter")
    monkeypatch.setattr("peftlab.methods.pissa.principal", lambda *_: pytest.fail("it is computed"))
    again, _ = peftlab.load(tmp_path / "adapter")
    state = adapter_state(again)
    for name, tensor in adapter_state(model).items():
        assert torch.equal(state[name], tensor)


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 1}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.5}]
)
def test_an_adapter_of_another_structure_than_its_files_is_refused(
    change: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """It was loaded onto the files' own, and answered otherwise."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3, **change)
    peftlab.inject(model, "lora")
    (name, value) = next(iter(change.items()))
    with pytest.raises(peftlab.RequestError, match=f"{name} is {value!r} in this model and"):
        peftlab.save(model, tmp_path / "adapter")


def test_a_config_inside_the_config_is_looked_at_as_the_config_is(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Loading writes its dtype: an adapter of any MPT or Gemma 3 was refused."""
    config = MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=40, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    model, _ = peftlab.load_model(tmp_path / "base", num_labels=2)
    peftlab.inject(model, "lora")
    peftlab.save(model, tmp_path / "adapter")
    peftlab.load(tmp_path / "adapter")
    model.config.attn_config.alibi_bias_max = 4
    with pytest.raises(peftlab.RequestError, match=r"attn_config\.alibi_bias_max is 4 in this"):
        peftlab.save(model, tmp_path / "other")


def test_what_is_the_answers_own_of_a_config_may_be_another(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=3, hidden_dropout_prob=0.0, problem_type="regression",
        id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}, dtype="bfloat16",
        attn_implementation="eager", output_hidden_states=True, pad_token_id=1,
    )  # fmt: skip
    peftlab.save(peftlab.inject(model, "lora"), tmp_path / "adapter")
    peftlab.load(tmp_path / "adapter")


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(
    trained: Any, tiny_task: Task, tmp_path: Path
) -> None:
    model, tokenizer = trained("lora", num_labels=2)
    tokenizer.add_tokens(["zebra"])
    refused = "has a token .* and this model knows"
    with pytest.raises(peftlab.RequestError, match=refused):
        peftlab.save(model, tmp_path / "adapter", tokenizer=tokenizer)
    with pytest.raises(peftlab.RequestError, match=refused):
        peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1)


def test_an_adapter_on_a_base_trained_further_is_refused_before_it_trains(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight.mul_(1.1)
    before = model.classifier.weight.clone()
    with pytest.raises(peftlab.RequestError, match=r"query.weight is frozen"):
        peftlab.train(model, tokenizer, tiny_task, "lora", out=tmp_path / "adapter", epochs=1)
    assert torch.equal(model.classifier.weight, before)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("there", [torch.bfloat16, torch.float32])
def test_a_base_that_was_cast_is_still_its_files(
    there: torch.dtype, tiny_model: Path, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.float16)
    peftlab.save(peftlab.inject(model.to(there), "lora"), tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("part", ["labels", "task"])
def test_a_card_with_more_labels_than_outputs_is_refused(
    part: str, trained: Any, tmp_path: Path
) -> None:
    """It would name an answer that no output gives."""
    peftlab.save(trained("lora")[0], tmp_path / "adapter")
    path = tmp_path / "adapter" / "peftlab.json"
    card = json.loads(path.read_text())
    names = card["labels"] if part == "labels" else card["task"]["labels"]
    names.append("fourth")
    path.write_text(json.dumps(card))
    with pytest.raises(peftlab.RequestError, match="4 labels for 3 outputs"):
        peftlab.load(tmp_path / "adapter")
