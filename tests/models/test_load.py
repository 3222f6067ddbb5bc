from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

import peftlab.models.load as load_room
from peftlab.adapters import load, save
from peftlab.api.plan import plan
from peftlab.errors import RequestError
from peftlab.layers.precision import Choice
from peftlab.methods import inject
from peftlab.models import (
    empty_model,
    find,
    find_targets,
    head_parameters,
    load_model,
    load_tokenizer,
    longest_input,
    quiet,
    state_of,
)
from peftlab.models.find import read_config
from peftlab.models.tokenizer import MAX_TOKENS

WEIGHTS = "model.safetensors"


def head(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in head_parameters(model).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_one_seed_gives_one_head_in_every_precision(tiny_model: Path) -> None:
    exact, _ = load_model(str(tiny_model), precision="fp32", seed=3)
    held, _ = load_model(str(tiny_model), precision="bf16", seed=3)
    assert {p.dtype for p in head(held).values()} == {torch.float32}
    assert equal(head(exact), head(held))
    assert held.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    other, _ = load_model(str(tiny_model), precision="fp32", seed=4)
    assert not torch.equal(other.classifier.weight, exact.classifier.weight)


def test_the_head_does_not_depend_on_the_global_generator(tiny_model: Path) -> None:
    torch.manual_seed(1)
    one, _ = load_model(str(tiny_model), seed=0)
    torch.manual_seed(2)
    two, _ = load_model(str(tiny_model), seed=0)
    assert equal(head(one), head(two))


def test_a_pretrained_pooler_is_kept_exactly(tiny_model: Path) -> None:
    stored = load_file(tiny_model / "model.safetensors")
    for precision in ("fp32", "bf16"):
        model, _ = load_model(str(tiny_model), precision=precision)
        assert torch.equal(model.bert.pooler.dense.weight, stored["pooler.dense.weight"])


def test_the_base_is_what_transformers_loads(tiny_model: Path) -> None:
    ours, tokenizer = load_model(str(tiny_model), precision="fp32")
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    theirs.load_state_dict(head(ours), strict=False)
    batch = tokenizer(["the cat sees a dog"], return_tensors="pt")
    assert torch.equal(ours.eval()(**batch).logits, theirs.eval()(**batch).logits)


def test_files_are_read_a_few_tensors_at_a_time_in_the_base_s_precision(
    make_tiny_model: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole file in fp32 beside the base in bf16 would be three times the base."""
    folder = make_tiny_model(tmp_path / "model")
    stored = load_file(folder / "model.safetensors") | {"position_ids": torch.arange(4)}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    opened: list[int] = []
    monkeypatch.setattr(
        load_room, "safe_open", lambda *a: opened.append(1) or safetensors.safe_open(*a)
    )
    files = load_room._WeightFiles(folder)
    opened.clear()
    cast = files.cast(torch.bfloat16)
    assert len(opened) == len(stored)  # an open file keeps the pages that were read
    assert cast.keys() == stored.keys()
    for name, tensor in stored.items():
        wanted = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert cast[name].dtype == wanted.dtype and torch.equal(cast[name], wanted)
    assert torch.equal(files.cast("auto")[name], stored[name])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_the_file_of_a_base_in_another_precision_is_let_go(
    precision: str, tmp_path: Path, tiny_model: Path
) -> None:
    """A tensor left in the mapped file keeps all of its pages resident: 336 MiB of MPNet."""
    folder = shutil.copytree(tiny_model, tmp_path / "mapped")
    model, _ = load_model(folder, 2, precision, device="cpu")
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert model.num_labels == 2


def test_a_finetuned_head_of_the_same_shape_is_kept_and_another_is_drawn(
    tmp_path: Path, tiny_model: Path
) -> None:
    model, tokenizer = load_model(str(tiny_model), num_labels=3, precision="fp32", seed=5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    same, _ = load_model(str(tmp_path), num_labels=3, precision="bf16", seed=0)
    assert equal(head(same), head(model))
    fewer, _ = load_model(str(tmp_path), num_labels=2, seed=0)
    assert fewer.classifier.weight.shape == (2, 32)
    assert fewer.classifier.weight.std() > 0


def test_minilm_is_the_real_pretrained_encoder() -> None:
    model, tokenizer = load_model("minilm", precision="fp32")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(22.7e6, rel=0.01)
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Stocks fell sharply."]
    with torch.no_grad():
        states = model.bert(**tokenizer(texts, padding=True, return_tensors="pt"))[0].mean(1)
    near, far = (torch.cosine_similarity(states[0], states[i], dim=0) for i in (1, 2))
    assert near > far + 0.2  # random weights see no such difference


def test_nothing_is_printed_while_loading(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_model(str(tiny_model))
    assert capfd.readouterr() == ("", "")


def test_empty_model_holds_no_memory_and_has_the_same_names(tiny_model: Path) -> None:
    empty = empty_model(tiny_model, num_labels=3)
    loaded, _ = load_model(str(tiny_model), num_labels=3)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert [n for n, _ in empty.named_parameters()] == [n for n, _ in loaded.named_parameters()]
    assert find_targets(empty, "query").names == find_targets(loaded, "query").names


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_16_bits_is_held_in_what_is_asked(
    stored: torch.dtype, tiny_model: Path, tmp_path: Path
) -> None:
    """Its structure was in 16 bits too, which no method that trains the base takes."""
    model, tokenizer = load_model(str(tiny_model), precision="fp32")
    model.to(stored).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert read_config(tmp_path).dtype == stored
    assert {p.dtype for p in empty_model(tmp_path, 2).parameters()} == {torch.float32}
    for methods in (["full", "lora"], ["bitfit"]):
        plan(model=tmp_path, tasks="acceptability", methods=methods, seeds=[0])
    again, _ = load_model(tmp_path, precision="fp32")
    assert {p.dtype for p in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_a_base_stored_in_16_bits_is_quantised_from_them_matrix_by_matrix(
    precision: str,
    stored: torch.dtype,
    is_mixed: bool,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made fp32 as a whole before, MPNet-base in int8 took 850 MiB to load and not 554."""
    copies = [shutil.copytree(tiny_model, tmp_path / name) for name in ("short", "long")]
    tensors = {name: t.to(stored) for name, t in load_file(tiny_model / WEIGHTS).items()}
    if is_mixed:
        tensors["embeddings.LayerNorm.weight"] = torch.full((32,), 1.0 + 1e-6)
    save_file(tensors, copies[0] / WEIGHTS, {"format": "pt"})
    exact = {name: t.float() for name, t in tensors.items()}
    save_file(exact, copies[1] / WEIGHTS, {"format": "pt"})
    read, own = [], load_room.quantise_linears

    def noted(model: torch.nn.Module, *settings: Any) -> None:
        read.append({p.dtype for p in model.parameters()})
        own(model, *settings)

    monkeypatch.setattr(load_room, "quantise_linears", noted)
    short, long = [load_model(folder, 2, precision)[0].state_dict() for folder in copies]
    assert read == [{torch.float32 if is_mixed else stored}, {torch.float32}]
    assert equal(short, long)


def test_longest_input_counts_positions_from_the_padding(tiny_model: Path, tmp_path: Path) -> None:
    assert longest_input(tiny_model) == 64
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "roberta", "max_position_embeddings": 20, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    assert longest_input(folder) == 18
    config |= {"model_type": "bert", "max_position_embeddings": -1}  # as XLNet, which counts none
    (folder / "config.json").write_text(json.dumps(config))
    assert longest_input(folder) == load_tokenizer(folder).model_max_length
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": math.inf}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert longest_input(folder) == MAX_TOKENS


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "does not exist"),
        (
            lambda f: (f / "config.json").unlink(),
            r"has no config\.json; it holds model",
        ),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json of model .* can't be read"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors weights"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            r"only pickle weights \(pytorch_model\.bin\).*save_pretrained",
        ),
        (lambda f: (f / "model.safetensors").write_text("no"), "not a readable safetensors file"),
        (
            lambda f: [path.unlink() for path in f.glob("tokenizer*")],
            r"has no tokenizer \(tokenizer\.json or a vocabulary\)",
        ),
    ],
)
def test_a_folder_that_lacks_something_is_refused(
    spoil: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    make_tiny_model: Callable[[Path], Path],
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    spoil(folder)
    with pytest.raises(RequestError, match=message):
        find(str(folder))


def test_a_broken_tokenizer_is_refused(
    tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match="tokenizer of model can't be read"):
        longest_input(folder)


def test_code_in_a_model_folder_is_never_run(
    tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(RequestError, match="can't be read"):
        find(str(folder))


def test_sharded_weights_are_hashed_and_read_whole(tmp_path: Path, tiny_model: Path) -> None:
    whole, _ = load_model(str(tiny_model), precision="fp32")
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    for path in tiny_model.glob("*token*"):
        shutil.copy(path, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again, _ = load_model(str(tmp_path), precision="fp32")
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    before = find(str(tmp_path)).sha256
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    save_file({name: value + 1 for name, value in tensors.items()}, shard, {"format": "pt"})
    assert find(str(tmp_path)).sha256 != before


def test_an_unknown_name_suggests_the_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("peftlab.models.find"), "reachable", lambda: False)
    with pytest.raises(RequestError, match=r"did you mean 'minilm'.*hub can't be reached"):
        find("minilmm")


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", 3), ("intermediate_size", 40)])
def test_a_backbone_that_its_weights_do_not_fill_is_refused(
    field: str, value: int, tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(RequestError, match=r"don't fit its config\.json: \d+ tensors"):
        load_model(str(folder))


def test_identity_holds_configuration_and_tokenizer(
    tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    before = find(str(folder)).sha256
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    changed = find(str(folder)).sha256
    assert changed != before
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokenizer.replace('"cat"', '"cow"'))
    assert find(str(folder)).sha256 not in {before, changed}


def test_a_folder_called_like_a_packaged_model_is_not_taken_for_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "minilm")
    source = find(str(tmp_path / "minilm"))
    assert (source.name, source.is_named) == ("minilm-folder", False)


def test_an_adapters_file_is_no_model(
    tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(RequestError, match=r"has no model\.safetensors weights"):
        find(str(folder))


def test_an_index_that_names_a_missing_shard_is_refused(
    tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    index = {"weight_map": {"a": "there.safetensors", "b": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = find(str(folder)).sha256  # transformers leaves the index where it writes one file
    (folder / "model.safetensors").rename(folder / "there.safetensors")
    with pytest.raises(RequestError, match=r"names a file that is not there: gone"):
        find(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "there.safetensors").rename(folder / "model.safetensors")
    assert find(str(folder)).sha256 == whole


def test_only_what_is_hashed_is_loaded(
    tmp_path: Path, make_tiny_model: Callable[[Path], Path]
) -> None:
    """A second file of tensors in the folder, of an adapter or an older run, is none of it."""
    folder = make_tiny_model(tmp_path / "model")
    whole, _ = load_model(str(folder), precision="fp32")
    before = find(str(folder)).sha256
    stored = load_file(folder / "model.safetensors")
    stray = {name: value + 1 for name, value in stored.items()} | {"classifier.bias": torch.ones(2)}
    save_file(stray, folder / "zzz.safetensors", {"format": "pt"})
    again, _ = load_model(str(folder), precision="fp32")
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert find(str(folder)).sha256 == before


def test_a_hub_that_breaks_off_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transport's errors are none of the library's, nor the system's."""

    def broken(*args: object, **given: object) -> None:
        raise RuntimeError("Server disconnected\nwithout a word")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    monkeypatch.setattr(importlib.import_module("peftlab.models.find"), "reachable", lambda: True)
    reason = "me/thing can't be loaded from the hub: RuntimeError: Server disconnected without a"
    with pytest.raises(RequestError, match=reason):
        load_model("me/thing")


def test_a_model_comes_to_lie_where_it_computes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its precision is that device's: bf16, which a GPU multiplies fast, may be slow on a CPU."""
    found = Choice("meta", "in the place of a GPU")
    model, _ = load_model(str(tiny_model), device="cpu")
    save(inject(model, "lora"), tmp_path / "adapter")
    for room in ("models.load", "adapters.folder"):
        monkeypatch.setattr(f"peftlab.{room}.resolve_device", lambda asked: found)
    for model, _ in (load_model(str(tiny_model)), load(tmp_path / "adapter", precision="auto")):
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert state_of(model).precision.base == "fp32"


def test_a_device_that_there_is_not_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RequestError, match="device must be auto, cpu, cuda or mps, got 'tpu'"):
        load_model(str(tiny_model), device="tpu")


@pytest.mark.parametrize("has_bars", [True, False])
def test_transformers_own_words_are_as_loud_as_before_behind_a_load(has_bars: bool) -> None:
    """They are the process's: a caller's own models would be loaded without a warning."""
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if has_bars else logging.disable_progress_bar)()
        with pytest.raises(ValueError, match="mine"), quiet():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
            raise ValueError("mine")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == has_bars
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
