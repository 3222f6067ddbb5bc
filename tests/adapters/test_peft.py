"""Folders go both ways between peftlab and HF PEFT, the head included."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import peftlab
from peftlab.adapters import read_card
from peftlab.layers import NF4Linear, weight_of
from peftlab.methods import injected, make

TARGETS = ["query", "intermediate.dense"]


@pytest.fixture(autouse=True)
def quiet_peft() -> Any:
    """PEFT 0.21 calls what transformers 5.24 has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        yield


def base_of(folder: Path, num_labels: int = 3) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lora", {}),
        ("lora", {"rank_stabilised": True}),
        ("lora-plus", {}),
        ("lora-fa", {}),
        ("dora", {}),
        ("vera", {}),
        ("dylora", {}),
        ("pissa", {}),
        ("pissa", {"alpha": 5.0, "niter": 4}),
        ("ia3", {}),
        ("ia3", {"feedforward": ""}),
    ],
)
def test_peft_loads_what_peftlab_saved(
    name: str, settings: dict[str, Any], trained: Any, logits: Any, tiny_model: Path, tmp_path: Path
) -> None:
    model, tokenizer = trained(name, **settings)
    peftlab.save(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base_of(tiny_model), tmp_path / "adapter").eval()
    wanted = logits(model, tokenizer)
    torch.testing.assert_close(logits(theirs, tokenizer), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bundled", [False, True])
def test_peft_s_auto_class_loads_the_folder_by_itself(
    bundled: bool, tiny_model: Path, logits: Any, tmp_path: Path
) -> None:
    """adapter_config.json names a folder, or a name of the hub; "minilm" is neither."""
    name = "minilm" if bundled else str(tiny_model)
    model, tokenizer = peftlab.load_model(name, num_labels=2, precision="fp32")
    peftlab.inject(model, "lora")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    peftlab.save(model, tmp_path / "adapter")
    found = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(
        logits(found.eval(), tokenizer), logits(model.eval(), tokenizer), rtol=0, atol=1e-5
    )
    card = read_card(tmp_path / "adapter")
    assert card is not None
    assert card.base.folder == (None if bundled else str(tiny_model.resolve()))


def test_peft_loads_dylora_at_a_rank(
    trained: Any, logits: Any, tiny_model: Path, tmp_path: Path
) -> None:
    model, tokenizer = trained("dylora")
    ranks = injected(model).ranks(model)  # while it is held, the model is at its rank
    assert next(ranks) == 1
    peftlab.save(model, tmp_path / "adapter", rank=1)
    theirs = peft.PeftModel.from_pretrained(base_of(tiny_model), tmp_path / "adapter").eval()
    wanted = logits(model, tokenizer)
    torch.testing.assert_close(logits(theirs, tokenizer), wanted, rtol=0, atol=1e-5)


def test_peft_loads_qlora_on_the_dequantised_base(
    trained: Any, logits: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftlab.layers.precision.processor_words", set)  # it computes in fp32
    model, tokenizer = trained("qlora")
    peftlab.save(model, tmp_path / "adapter")
    base = base_of(tiny_model)
    for name, module in model.named_modules():
        if isinstance(module, NF4Linear):
            weight = base.get_submodule(name.removesuffix(".base")).weight
            weight.data = weight_of(module)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    wanted = logits(model, tokenizer)
    torch.testing.assert_close(logits(theirs, tokenizer), wanted, rtol=0, atol=1e-5)


LORA = {"r": 3, "lora_alpha": 5}
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "lora": (peft.LoraConfig, LORA),
    "rslora": (peft.LoraConfig, {**LORA, "use_rslora": True}),
    "dora": (peft.LoraConfig, {**LORA, "use_dora": True}),
    "vera": (peft.VeraConfig, {"r": 5}),
    "ia3": (peft.IA3Config, {"feedforward_modules": ["intermediate.dense"]}),
    "vera-drawn-again": (peft.VeraConfig, {"r": 5, "save_projection": False}),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.filterwarnings("ignore:Specified to not")
def test_peftlab_loads_what_peft_saved(
    name: str, trained: Any, logits: Any, tmp_path: Path, tiny_model: Path
) -> None:
    theirs, tokenizer = _theirs(name, tiny_model)
    theirs.save_pretrained(tmp_path / "theirs")
    # the tiny model's file has no classifier, so PEFT's is the one that it drew and saved
    ours, _ = peftlab.load(tmp_path / "theirs", precision="fp32")
    wanted = logits(theirs, tokenizer)
    torch.testing.assert_close(logits(ours, tokenizer), wanted, rtol=0, atol=1e-5)


def _theirs(name: str, folder: Path) -> tuple[Any, Any]:
    _, tokenizer = peftlab.load_model(str(folder), num_labels=3)
    config, settings = CONFIGS[name]
    asked = config(target_modules=TARGETS, task_type="SEQ_CLS", **settings)
    theirs = peft.get_peft_model(base_of(folder), asked)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs.eval(), tokenizer


def test_pefts_pissa_is_lora_once_it_is_converted(
    logits: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """As PEFT converts it; the head, which it leaves out then, is put back."""
    _, tokenizer = peftlab.load_model(str(tiny_model), num_labels=3)
    asked = peft.LoraConfig(
        **LORA, init_lora_weights="pissa", target_modules=TARGETS, task_type="SEQ_CLS"
    )
    theirs = peft.get_peft_model(base_of(tiny_model), asked)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wanted = logits(theirs.eval(), tokenizer)
    theirs.save_pretrained(
        tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    theirs.save_pretrained(tmp_path / "whole")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "theirs")]
    whole, converted = map(load_file, files)
    assert "base_model.model.classifier.weight" in whole.keys() - converted.keys()
    save_file(whole | converted, files[1])
    ours, _ = peftlab.load(tmp_path / "theirs", precision="fp32")
    assert injected(ours).settings["rank"] == 2 * LORA["r"]
    torch.testing.assert_close(logits(ours, tokenizer), wanted, rtol=0, atol=1e-5)


def test_a_pooler_that_peft_adapts_is_refused_by_its_name(tiny_model: Path, tmp_path: Path) -> None:
    asked = peft.LoraConfig(**LORA, target_modules="all-linear", task_type="SEQ_CLS")
    theirs = peft.get_peft_model(base_of(tiny_model), asked)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(peftlab.RequestError, match=r"bert\.pooler\.dense.*part of the head.*merge"):
        peftlab.load(tmp_path / "theirs")


def test_a_folder_of_peft_without_its_head_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    theirs, _ = _theirs("lora", tiny_model)
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "classifier" not in name}
    save_file(kept, path)
    with pytest.raises(peftlab.RequestError, match="adapter has no head"):
        peftlab.load(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_pattern": {"query": 2}}, "rank_pattern"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa"}, "changes the base itself"),
        ({"peft_type": "LOHA"}, "LOHA is not known here; IA3, LORA and VERA are"),
        ({"r": None}, "lacks r, or it is not int"),
        ({"base_model_name_or_path": None}, "lacks base_model_name_or_path"),
        ({"base_model_name_or_path": ""}, "lacks base_model_name_or_path"),
        ({"base_model_name_or_path": "/gone"}, r"is not where it was \(.*\); say where it lies"),
    ],
)
def test_what_no_method_here_computes_is_refused(
    settings: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    theirs, _ = _theirs("lora", tiny_model)
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(peftlab.RequestError, match=message):
        peftlab.load(tmp_path / "theirs")


def test_a_base_of_several_labels_at_once_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Its answers would be one label each."""
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (folder / "config.json").write_text(json.dumps(config))
    theirs, _ = _theirs("lora", folder)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(peftlab.RequestError, match="gives several labels at once"):
        peftlab.load(tmp_path / "theirs")


def test_adapters_of_another_pair_do_not_share_one_in_peft(
    trained: Any, tmp_path: Path, tiny_model: Path
) -> None:
    """PEFT lets all of a model share the first one's pair if their keys agree."""
    for name in ("one", "two"):
        model, _ = peftlab.load_model(tiny_model, num_labels=3, precision="fp32")
        torch.manual_seed(len(name) + ord(name[0]))
        peftlab.save(peftlab.inject(model, peftlab.VeRA(rank=5)), tmp_path / name)
    both = peft.PeftModel.from_pretrained(base_of(tiny_model), tmp_path / "one", adapter_name="one")
    with pytest.raises(ValueError, match="key must be the same"):
        both.load_adapter(tmp_path / "two", adapter_name="two")
    (tmp_path / "one" / "peftlab.json").unlink()
    ours, _ = peftlab.load(tmp_path / "one")
    assert injected(ours).projection_seed is None  # the pair is in the file


@pytest.mark.parametrize("name", ["lora", "dora", "vera", "ia3", "pissa"])
def test_folders_go_both_ways_on_conv1d(
    name: str, logits: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """GPT-2 holds its weights transposed: fan_in_fan_out in PEFT's words."""
    folder = _tiny_gpt2(tiny_model, tmp_path / "gpt2")
    model, tokenizer = peftlab.load_model(str(folder), num_labels=3, precision="fp32")
    settings = {"vera": {"rank": 5}, "ia3": {}}.get(name, {"rank": 3})
    peftlab.inject(model, make(name, settings | {"targets": "query,ffn-in"}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wanted = logits(model.eval(), tokenizer)
    peftlab.save(model, tmp_path / "ours")
    base = base_of(folder)
    base.config.pad_token_id = tokenizer.pad_token_id
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    torch.testing.assert_close(logits(theirs, tokenizer), wanted, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again, _ = peftlab.load(tmp_path / "theirs", precision="fp32")
    torch.testing.assert_close(logits(again, tokenizer), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_a_base_in_few_bits_stores_its_weights_as_before(
    precision: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = _tiny_gpt2(tiny_model, tmp_path / "gpt2")
    model, _ = peftlab.load_model(str(folder), precision=precision)
    peftlab.save(peftlab.inject(model, "lora"), tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True


def _tiny_gpt2(tokenizer: Path, folder: Path) -> Path:
    """A random decoder whose tokenizer has no padding of its own."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=len(words),
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    words.pad_token, words.eos_token = None, "[SEP]"
    words.model_input_names = ["input_ids", "attention_mask"]
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stored", [True, False])
def test_an_adapter_of_peft_with_a_part_of_the_head_takes_the_rest_from_its_base(
    stored: bool, logits: Any, tiny_model: Path, tmp_path: Path
) -> None:
    _, tokenizer = peftlab.load_model(str(tiny_model))
    settings = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "num_labels": 3}
    config = DistilBertConfig(vocab_size=len(tokenizer), pad_token_id=0, **settings)
    kind = DistilBertForSequenceClassification if stored else DistilBertModel
    kind(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = DistilBertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    asked = peft.LoraConfig(
        **LORA, target_modules=["q_lin", "v_lin"], modules_to_save=["pre_classifier"]
    )
    theirs = peft.get_peft_model(base, asked).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    if not stored:
        with pytest.raises(peftlab.RequestError, match=r"has no head .*, nor has its base"):
            peftlab.load(tmp_path / "theirs")
        return
    ours, _ = peftlab.load(tmp_path / "theirs", precision="fp32")
    torch.testing.assert_close(logits(ours, tokenizer), logits(theirs, tokenizer))


def test_an_adapter_of_a_model_that_reads_padding_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    """As its base is: the answer to a text would depend on the texts beside it."""
    config = transformers.XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=16)
    transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path / "base")
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    asked = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["layer_1"])
    peft.get_peft_model(model, asked).save_pretrained(tmp_path / "adapter")
    with pytest.raises(peftlab.RequestError, match="can't be trained in batches"):
        peftlab.load(tmp_path / "adapter")


def test_peftlab_loads_a_rank_stabilised_dora_of_pefts(
    trained: Any, logits: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {**LORA, "use_dora": True, "use_rslora": True}
    monkeypatch.setitem(CONFIGS, "rsdora", (peft.LoraConfig, both))
    test_peftlab_loads_what_peft_saved("rsdora", trained, logits, tmp_path, tiny_model)
