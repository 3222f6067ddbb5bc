"""Merging is exact up to the rounding it reports, and leaves the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import peftlab
from peftlab.adapters import plain_folder
from peftlab.api.export import merge_folder
from peftlab.layers import Adapter, LoRALinear, NF4Linear, weight_of
from peftlab.methods import METHODS, inject
from tiny import tiny

MERGED = [name for name, method in METHODS.items() if method.mergeable]


@pytest.mark.parametrize("name", MERGED)
def test_the_merged_model_equals_the_adapted_one(name: str, trained: Any, logits: Any) -> None:
    model, tokenizer = trained(name, "fp32" if name != "qlora" else None)
    before = logits(model, tokenizer)
    peftlab.merge(model)
    assert not any(isinstance(module, Adapter) for module in model.modules())
    tolerance = 0.05 if name == "qlora" else 1e-5  # an nf4 base may compute in bf16
    torch.testing.assert_close(logits(model, tokenizer), before, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MERGED)
def test_unmerge_puts_the_very_objects_back(name: str, trained: Any, logits: Any) -> None:
    model, tokenizer = trained(name)
    modules, before = dict(model.named_modules()), logits(model, tokenizer)
    peftlab.merge(model)
    peftlab.unmerge(model)
    assert all(modules[n] is module for n, module in model.named_modules())
    assert torch.equal(logits(model, tokenizer), before)
    with pytest.raises(peftlab.RequestError, match="not merged"):
        peftlab.unmerge(model)


def test_a_bf16_base_is_read_again_in_fp32_and_its_rounding_reported(
    trained: Any, tiny_model: Path
) -> None:
    model, _ = trained("lora", "bf16")
    name = "bert.encoder.layer.0.attention.self.query"
    adapter = model.get_submodule(name)
    stored = load_file(tiny_model / "model.safetensors")
    exact = stored["encoder.layer.0.attention.self.query.weight"]
    assert not torch.equal(exact, exact.bfloat16().float())
    wanted = (exact + adapter.scaling * adapter.lora_B @ adapter.lora_A).detach()
    errors = peftlab.merge(model)
    merged = model.get_submodule(name).weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, wanted.bfloat16())
    assert errors[name] == (merged.float() - wanted).abs().max().item() > 0


def test_what_rounding_costs_a_bias_is_reported_too(trained: Any) -> None:
    model, _ = trained("bitfit", "bf16")
    name = "bert.encoder.layer.0.attention.self.query"
    with torch.no_grad():
        model.get_submodule(name).bias += 3.001  # which bf16 holds to 2⁻⁷
    exact = model.get_submodule(name).bias.detach().clone()
    errors = peftlab.merge(model)
    bias = model.get_submodule(name).bias
    assert bias.dtype == torch.bfloat16
    assert errors[name] >= (bias.float() - exact).abs().max().item() > 1e-3


def test_in_fp32_nothing_is_rounded(trained: Any) -> None:
    model, _ = trained("dora", "fp32")
    assert set(peftlab.merge(model).values()) == {0.0}


def test_houlsby_refuses_with_the_reason(trained: Any) -> None:
    with pytest.raises(peftlab.RequestError, match="what it adds is not linear"):
        peftlab.merge(trained("houlsby")[0])


def test_merging_twice_or_without_a_method_is_refused(trained: Any, tiny_model: Path) -> None:
    model, _ = trained("lora")
    peftlab.merge(model)
    with pytest.raises(peftlab.RequestError, match="merged already"):
        peftlab.merge(model)
    with pytest.raises(peftlab.RequestError, match="nothing to merge"):
        peftlab.merge(peftlab.load_model(str(tiny_model))[0])


@pytest.mark.parametrize("name", ["lora", "vera", "qlora", "full", "bitfit"])
def test_a_plain_folder_loads_with_transformers(
    name: str, trained: Any, logits: Any, tmp_path: Path
) -> None:
    model, tokenizer = trained(name)
    before = logits(model, tokenizer)
    moved = plain_folder(model, tokenizer, tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert not any(isinstance(module, NF4Linear) for module in model.modules())
    tolerance = 0.1 if name == "qlora" else 1e-5
    torch.testing.assert_close(logits(plain, tokenizer), before, rtol=0, atol=tolerance)
    assert moved < tolerance
    assert plain.config.id2label == {0: "red", 1: "green", 2: "blue"}
    cut = AutoTokenizer.from_pretrained(tmp_path / "plain")("the cat " * 40, truncation=True)
    assert len(cut["input_ids"]) == 32  # as trained; the base takes 64


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_a_merged_model_whose_norms_were_trained_computes_when_it_is_cast(
    precision: str, trained: Any, logits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BitFit holds them in fp32 among layers that compute in bf16."""
    monkeypatch.setattr("peftlab.layers.precision.processor_words", lambda: {"amx_bf16"})
    model, tokenizer = trained("bitfit", precision)
    before = logits(model, tokenizer)
    assert plain_folder(model, tokenizer, tmp_path / "plain") < 0.1
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    for one in (plain, model):  # the latter was cast by what wrote it
        torch.testing.assert_close(logits(one, tokenizer), before, rtol=0, atol=0.1)


def test_on_a_base_in_four_bits_the_update_is_added_unrounded(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to what the base computes in, where that is bf16: that would be a sixth of an update."""
    monkeypatch.setattr("peftlab.layers.precision.processor_words", lambda: {"amx_bf16"})
    model, _ = trained("lora", "nf4")
    peftlab.save(model, tmp_path / "adapter")
    assert merge_folder(tmp_path / "adapter", tmp_path / "plain").quantised
    written = load_file(tmp_path / "plain" / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query"
    layer = model.get_submodule(name)
    update = layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
    wanted = layer.base.dequantised(torch.float32).double() + update
    torch.testing.assert_close(written[f"{name}.weight"].double(), wanted, rtol=1e-6, atol=1e-7)


def test_a_merged_model_can_be_cast_and_cast_back(trained: Any, logits: Any) -> None:
    model, tokenizer = trained("bitfit", "bf16")
    peftlab.merge(model)
    before = logits(model, tokenizer)
    torch.testing.assert_close(logits(model.float(), tokenizer), before, rtol=0, atol=0.1)
    torch.testing.assert_close(logits(model.bfloat16(), tokenizer), before, rtol=0, atol=0.1)


def test_the_plain_model_never_takes_an_adapters_place(trained: Any, tmp_path: Path) -> None:
    model, tokenizer = trained("lora")
    peftlab.save(model, tmp_path / "adapter")
    with pytest.raises(peftlab.RequestError, match="give a new or an empty folder"):
        plain_folder(model, tokenizer, tmp_path / "adapter")
    peftlab.load(tmp_path / "adapter")


def test_a_cast_between_merging_and_unmerging_is_refused(trained: Any) -> None:
    model, _ = trained("lora")
    peftlab.merge(model)
    model.double()
    with pytest.raises(peftlab.RequestError, match="cast it back first"):
        peftlab.unmerge(model)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_model_that_reads_its_last_token_is_merged(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    """BART's and T5's heads answer at the end of the text, which random tokens lacked."""
    folder = tmp_path / "base"
    tiny(kind, torch.float32).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": tokenizer.sep_token})
    config.eos_token_id, config.pad_token_id = tokenizer.sep_token_id, tokenizer.pad_token_id
    config.decoder_start_token_id = tokenizer.pad_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model, tokenizer = peftlab.load_model(str(folder), precision="fp32")
    peftlab.inject(model, peftlab.LoRA(targets="all-linear"))
    assert plain_folder(model, tokenizer, tmp_path / "plain") < 1e-5
    assert (tmp_path / "plain" / "model.safetensors").exists()


def test_without_the_files_of_its_base_nothing_rounded_takes_their_place(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    model, _ = peftlab.load_model(str(tmp_path / "base"), 2, "bf16")
    peftlab.inject(model, peftlab.LoRA(rank=2))
    (tmp_path / "base" / "model.safetensors").unlink()
    before = dict(model.named_modules())
    with pytest.raises(peftlab.RequestError, match="the weights of base are no longer in"):
        peftlab.merge(model)
    assert dict(model.named_modules()) == before


def test_a_merge_that_is_stopped_half_way_changed_nothing(
    trained: Any, logits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = trained("lora")
    modules, before = dict(model.named_modules()), logits(model, tokenizer)
    made: list[Any] = []
    merged = LoRALinear.merged

    def stopped(layer: LoRALinear, weight: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(merged(layer, weight))
        return made[-1]

    monkeypatch.setattr(LoRALinear, "merged", stopped)
    with pytest.raises(KeyboardInterrupt):
        peftlab.merge(model)
    assert dict(model.named_modules()) == modules
    monkeypatch.undo()
    peftlab.merge(model)
    peftlab.unmerge(model)
    assert torch.equal(logits(model, tokenizer), before)


def test_a_base_in_eight_bits_is_read_again_from_its_file(trained: Any, tiny_model: Path) -> None:
    model, _ = trained("lora", "int8")
    name = "bert.encoder.layer.0.attention.self.query"
    adapter = model.get_submodule(name)
    exact = load_file(tiny_model / "model.safetensors")[name.removeprefix("bert.") + ".weight"]
    update = adapter.scaling * adapter.lora_B @ adapter.lora_A
    held = weight_of(adapter.base).float() + update
    peftlab.merge(model)
    merged = model.get_submodule(name).weight
    assert torch.equal(merged, (exact + update).to(merged.dtype))
    assert not torch.equal(merged, held.to(merged.dtype))


def test_a_square_weight_that_is_stored_the_other_way_is_read_so(
    tiny_model: Path, tmp_path: Path
) -> None:
    """GPT-2's; the wrong way round it would have the same shape."""
    tiny("gpt2", torch.float32).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "gpt2")
    model, _ = peftlab.load_model(str(tmp_path / "gpt2"), 2, "bf16")
    peftlab.inject(model, peftlab.LoRA(rank=2, targets="transformer.h.0.attn.c_proj"))
    name = "transformer.h.0.attn.c_proj"
    torch.nn.init.normal_(model.get_submodule(name).lora_B)
    exact = load_file(tmp_path / "gpt2" / "model.safetensors")[f"{name}.weight"]  # (in, out)
    adapter = model.get_submodule(name)
    update = (adapter.scaling * adapter.lora_B @ adapter.lora_A).T
    peftlab.merge(model)
    merged = model.get_submodule(name).weight
    assert merged.shape[0] == merged.shape[1]
    torch.testing.assert_close(merged.float(), (exact + update).bfloat16().float())


def test_a_base_whose_file_has_other_names_is_read_again_in_fp32(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Transformers translates the names of some architectures as it loads them, and back."""
    base = tmp_path / "base"
    tiny("nomic_bert", torch.float32).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    exact = peftlab.load_model(base, precision="fp32")[0].state_dict()
    model, _ = peftlab.load_model(base, precision="int8")
    peftlab.inject(model, peftlab.LoRA(targets="all-linear"))
    layers = {n: one for n, one in model.named_modules() if isinstance(one, LoRALinear)}
    assert not {f"{name}.weight" for name in layers} <= load_file(base / "model.safetensors").keys()
    peftlab.merge(model)  # with B at 0
    for name in layers:
        merged = model.get_submodule(name).weight
        assert torch.equal(merged, exact[f"{name}.weight"].to(merged.dtype))


def test_a_plain_folder_s_tokenizer_cuts_and_pads_nothing_by_itself(
    trained: Any, tmp_path: Path
) -> None:
    model, tokenizer = trained("lora")
    plain_folder(model, tokenizer, tmp_path / "plain")
    written = json.loads((tmp_path / "plain" / "tokenizer.json").read_text())
    assert written["truncation"] is written["padding"] is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_a_base_that_was_changed_since_is_what_is_merged(
    precision: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The file's weight was put back, and the errors said that all was well."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query" in name or "value" in name:
                parameter.mul_(2)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    other = peftlab.load_model(str(tmp_path / "other"), precision=precision)[0]
    model = peftlab.load_model(str(tiny_model), precision=precision)[0]
    model.load_state_dict(other.state_dict())
    inject(model, "lora")
    inputs = tokenizer(["a cat sees", "a dog"], return_tensors="pt", padding=True)
    before = model(**inputs).logits
    peftlab.merge(model)
    change = (model(**inputs).logits - before).abs().max()
    assert change < 0.05 * before.abs().max()
