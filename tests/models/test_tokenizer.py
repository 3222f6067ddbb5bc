"""An example's logits do not depend on what it is batched with, whatever tokens are padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from peftlab.api.inference import predictions
from peftlab.api.train import train
from peftlab.bench.grid import SuiteContext
from peftlab.bench.suite import make_suite
from peftlab.engine import fast
from peftlab.errors import RequestError
from peftlab.layers import QUANTISED, Precision, linear_like, weight_of
from peftlab.models import (
    ARCHITECTURES,
    agree_on_padding,
    check_batches,
    check_tokenizer,
    check_weights,
    find,
    linear_names,
    load_model,
    load_tokenizer,
    precision_of,
    save_tokenizer,
)
from peftlab.models.architectures import TABLE
from peftlab.tasks import Examples, Task
from peftlab.training import encode

WORDS = ["<s>", "</s>", "<unk>", "<pad>", "<own>", *(f"w{i}" for i in range(35))]
PAD, OWN = WORDS.index("<pad>"), WORDS.index("<own>")
COMMON = {
    "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "bos_token_id": 0, "eos_token_id": 1,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
T5 = {
    "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48,
    "decoder_start_token_id": PAD,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"cls_token_id": 0, "sep_token_id": 1},
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "mixtral", "phi3"), GROUPED),
    **dict.fromkeys(("bart", "mbart"), BART),
    **dict.fromkeys(("t5", "mt5"), T5),
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "falcon": {"alibi": False},
}
OTHERS = (
    *("gemma2", "t5", "mt5", "bart", "mbart", "bloom", "opt", "gpt_neo", "gpt_neox", "gpt_bigcode"),
    *("falcon", "phi", "phi3", "mixtral", "mpt", "camembert", "deberta", "rembert", "ctrl"),
)
# whose code counts the ends of texts: they can't be padding too
ENDS_COUNT = {"t5", "mt5", "bart", "mbart"}
COUNT_FROM_PADDING = {kind for kind, row in TABLE.items() if row.counts_from_padding}
# (the config's padding, the tokenizer's); without one the tokenizer pads with </s>
PADDINGS = {"one": (PAD, "<pad>"), "two": (PAD, "<own>"), "none": (None, None), "his": (PAD, None)}
# the end and the padding in the middle, too, and behind the text
TEXTS = [
    ("w1 w2 w3",),
    ("w4 </s> w5 <pad> w6 w7",),
    ("w8 w9 <pad>",),
    ("w8 w9 <own>",),
    ("w10 w11 </s> </s>",),
    (" ".join(f"w{i}" for i in range(30)),),
]
IN_ONE_PIECE = [text for text in TEXTS if "</s>" not in text[0]]


def make_tokenizer(pad: str | None) -> Any:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=pad,
        model_max_length=60,
        model_input_names=["input_ids", "attention_mask"],
    )


def with_ends(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def make_model(kind: str, pad: int | None = PAD) -> Any:
    """Away from its start, where much is too small to matter."""
    config = transformers.AutoConfig.for_model(kind)
    given = COMMON | {"pad_token_id": pad} | EXTRA.get(kind, {})
    config = type(config)(**given)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model: Any, tokenizer: Any, texts: list[tuple[str, ...]]) -> torch.Tensor:
    data = encode(tokenizer, texts, [0] * len(texts), 60)
    with torch.no_grad():
        result: torch.Tensor = model(**data.batch(range(len(texts))).inputs).logits
    return result


@pytest.mark.parametrize("quick", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kind", [*ARCHITECTURES, *OTHERS])
def test_an_examples_logits_do_not_depend_on_its_batch(
    kind: str, padding: str, quick: bool
) -> None:
    configs, tokenizers = PADDINGS[padding]
    if configs is None and kind in COUNT_FROM_PADDING | ENDS_COUNT | {"phi3"}:
        configs = PAD  # these can't be made without one
    if kind in ENDS_COUNT and tokenizers is None:
        tokenizers = "<pad>"
    model, tokenizer = make_model(kind, configs), make_tokenizer(tokenizers)
    texts = TEXTS
    if kind in ENDS_COUNT:
        tokenizer, texts = with_ends(tokenizer), IN_ONE_PIECE
    agree_on_padding(model, tokenizer)
    with fast(model, enabled=quick):
        together = logits(model, tokenizer, texts)
        for index, text in enumerate(texts):
            alone = logits(model, tokenizer, [text])[0]
            torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-5)


def save(folder: Path, kind: str, pad: int | None, tokenizers: str | None) -> str:
    make_model(kind, pad).save_pretrained(folder)
    make_tokenizer(tokenizers).save_pretrained(folder)
    return str(folder)


def probabilities(model: Any, tokenizer: Any, texts: list[tuple[str, ...]]) -> list[list[float]]:
    found = predictions(model, tokenizer, texts, lambda n: None)
    return [list(answer.scores.values()) for answer in found.answers]


@pytest.mark.parametrize(("pad", "tokenizers"), [(2, None), (PAD, "<own>"), (-1, None)])
def test_a_loaded_models_answers_do_not_depend_on_the_batch(
    pad: int, tokenizers: str | None, tmp_path: Path
) -> None:
    """A Llama whose config names another token than its tokenizer pads with, or none at all."""
    folder = save(tmp_path / "llama", "llama", PAD, tokenizers)
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    ours = load_model(folder, precision="fp32")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for model, tokenizer in (ours, (theirs, make_tokenizer(tokenizers))):
        together = probabilities(model, tokenizer, TEXTS)
        alone = [probabilities(model, tokenizer, [text])[0] for text in TEXTS]
        torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-5)


def test_a_saved_model_is_read_at_the_same_place_by_transformers(tmp_path: Path) -> None:
    model, tokenizer = load_model(save(tmp_path / "a", "llama", 2, None), precision="fp32")
    model.save_pretrained(tmp_path / "b")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    both = [logits(one.eval(), tokenizer, TEXTS) for one in (model, theirs)]
    assert torch.equal(*both)


def test_positions_that_count_from_the_padding_are_left_alone() -> None:
    model = make_model("roberta", PAD)
    agree_on_padding(model, make_tokenizer("<own>"))
    assert model.config.pad_token_id == PAD


def test_a_padding_token_that_the_model_has_not_is_not_used() -> None:
    model = make_model("llama", None)
    tokenizer = make_tokenizer("<new>")
    assert tokenizer.pad_token_id == len(WORDS)
    agree_on_padding(model, tokenizer)
    assert (tokenizer.pad_token, model.config.pad_token_id) == ("</s>", 1)


def test_a_tokenizer_without_anything_to_pad_with_is_refused() -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(RequestError, match=r"no token to pad with.*tokenizer\.pad_token = "):
        agree_on_padding(make_model("llama", None), tokenizer)


TINY: dict[str, dict[str, Any]] = {
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "convbert": {"embedding_size": 32, "conv_kernel_size": 3, "head_ratio": 1},
    "canine": {"num_hash_buckets": 32},
    "mobilebert": {"embedding_size": 32, "true_hidden_size": 16, "intra_bottleneck_size": 16},
}


def make_unsuited(kind: str) -> Any:
    common = {
        k: v for k, v in COMMON.items() if kind != "xlnet" or not k.startswith(("num", "max"))
    }
    config = transformers.AutoConfig.for_model(kind, **common | TINY.get(kind, {}))
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", sorted(kind for kind, row in TABLE.items() if row.unsuited))
def test_what_reads_padding_is_refused_by_name(kind: str) -> None:
    model, tokenizer = make_unsuited(kind), make_tokenizer("<pad>")
    short, long = TEXTS[1], TEXTS[-1]
    together, alone = (logits(model, tokenizer, texts)[0] for texts in ([short, long], [short]))
    assert not (together - alone).abs().max() < 1e-4  # so it is refused rightly
    with pytest.raises(RequestError, match=rf"\({kind}\) can't be trained in batches: "):
        check_batches(model, tokenizer)


def test_what_reads_padding_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    make_unsuited("fnet").save_pretrained(tmp_path)
    make_tokenizer("<pad>").save_pretrained(tmp_path)
    for look in (lambda: check_weights(find(str(tmp_path))), lambda: load_model(str(tmp_path))):
        with pytest.raises(RequestError, match=r"\(fnet\) can't be trained in batches: it has no"):
            look()


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_text_of_no_token_is_answered_alike_alone_and_beside_others(kind: str) -> None:
    model, tokenizer = make_model(kind), make_tokenizer("<pad>")
    agree_on_padding(model, tokenizer)
    together = logits(model, tokenizer, [("",), *TEXTS])
    torch.testing.assert_close(logits(model, tokenizer, [("",)])[0], together[0])
    torch.testing.assert_close(logits(model, tokenizer, [("<s>",)])[0], together[0])


def test_what_stands_for_no_token_is_a_token_of_the_tokenizer_s() -> None:
    tokenizer = make_tokenizer(None)
    for name, wanted in (("bos_token", 0), ("eos_token", 1), ("pad_token", PAD)):
        tokenizer.pad_token = "<pad>"
        data = encode(tokenizer, [("w1", "w2"), ("", "")], [0, 0], 60)
        assert data.features["input_ids"][1] == [wanted]
        assert data.features["attention_mask"] == [[1, 1], [1]]
        setattr(tokenizer, name, None)


def test_a_tokenizer_in_python_alone_is_refused(tmp_path: Path) -> None:
    tokenizer = transformers.ByT5Tokenizer()
    for folder in (tmp_path / "with-config", tmp_path / "alone"):
        tokenizer.save_pretrained(folder)
    make_model("t5").config.save_pretrained(tmp_path / "with-config")
    for look in (
        lambda: check_tokenizer(tokenizer),
        lambda: load_tokenizer(tmp_path / "with-config"),
        lambda: load_tokenizer(tmp_path / "alone"),
    ):
        with pytest.raises(RequestError, match="ByT5Tokenizer is written in Python alone"):
            look()


@pytest.mark.parametrize("kind", ["fnet", "convbert", "xlnet"])
def test_an_architecture_that_is_in_no_table_is_tried(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(TABLE, kind)
    with pytest.raises(RequestError, match=rf"\({kind}\) answers a text otherwise when"):
        check_batches(make_unsuited(kind), make_tokenizer("<pad>"))
    check_batches(make_model("gemma2"), make_tokenizer(None))


def test_one_that_fails_in_bf16_is_held_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers leaves parts of the first DeBERTa in fp32, whatever the rest is loaded in."""
    monkeypatch.setattr("peftlab.layers.precision.processor_words", lambda: {"amx_bf16"})
    folder = save(tmp_path / "deberta", "deberta", PAD, "<pad>")
    model, tokenizer = load_model(folder)
    assert precision_of(model) == Precision("fp32", "fp32")
    assert torch.isfinite(logits(model, tokenizer, TEXTS)).all()
    with pytest.raises(RequestError, match=r"\(deberta\) fails in bf16: .*BFloat16; take fp32"):
        load_model(folder, precision="bf16")
    rows = Examples([(text[0],) for text in TEXTS], [0, 1] * 3)
    task = Task("t", "classes", ("accuracy",), rows, rows, ("a", "b"))
    record = train(model, tokenizer, task, "full", epochs=1, batch_size=2)
    assert record.precision == "fp32" and record.training["compute"] == "fp32"
    context = SuiteContext.of(make_suite(model=folder, tasks=["words"]))
    assert context.precision == Precision("fp32", "fp32")
    assert "fp32 (deberta fails in bf16: " in context.notes[0]


def test_one_that_fails_under_autocast_is_held_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As full fine-tuning computes: an fp32 base whose products are made in bf16."""
    monkeypatch.setattr("peftlab.layers.precision.processor_words", lambda: {"amx_bf16"})
    folder = save(tmp_path / "gemma2", "gemma2", PAD, "<pad>")
    assert precision_of(load_model(folder)[0]) == Precision("bf16", "bf16")

    def compute_logits(*given: Any) -> None:
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("not of one kind")

    monkeypatch.setattr("peftlab.models.load.compute_logits", compute_logits)
    assert precision_of(load_model(folder)[0]) == Precision("fp32", "fp32")
    assert precision_of(load_model(folder, precision="bf16")[0]) == Precision("bf16", "bf16")


def test_a_head_of_the_caller_s_own_is_tried_whatever_the_architecture() -> None:
    model, tokenizer = make_model("bert"), make_tokenizer("<pad>")
    check_batches(model, tokenizer)
    model.bert.pooler.forward = lambda hidden: hidden.mean(1)  # padding, too
    with pytest.raises(RequestError, match=r"\(bert\) answers a text otherwise when"):
        check_batches(model, tokenizer)


@pytest.mark.parametrize(("held", "bound"), [("nf4", 1e-4), ("int8", 0.05)])
@pytest.mark.parametrize("compute", [set(), {"amx_bf16"}], ids=["fp32", "bf16"])
def test_a_base_that_is_asked_for_its_weights_may_be_held_in_few_bits(
    held: str, bound: float, compute: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 asks for their precision. It answers as with the plain layers that the codes stand for."""
    monkeypatch.setattr("peftlab.layers.precision.processor_words", lambda: compute)
    make_model("t5").save_pretrained(tmp_path)
    with_ends(make_tokenizer("<pad>")).save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), precision=held)
    found = logits(model, tokenizer, IN_ONE_PIECE)
    for name in linear_names(model):
        layer: Any = model.get_submodule(name)
        assert isinstance(layer, QUANTISED[held]) and layer.weight.dtype == layer.compute
        model.set_submodule(name, linear_like(layer, weight_of(layer), layer.bias))
    wanted = logits(model, tokenizer, IN_ONE_PIECE)
    bound = bound if not compute else 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=bound * wanted.abs().max().item())


def test_one_that_can_answer_no_batch_is_refused_with_its_reason() -> None:
    """T5 needs as many ends in every text, so padding with the end of a text can't be."""
    tokenizer = with_ends(make_tokenizer(None))
    with pytest.raises(RequestError, match=r"\(t5\) can't answer a batch of two texts: All exam"):
        check_batches(make_model("t5"), tokenizer)


def test_a_model_with_one_type_of_token_is_given_none(tmp_path: Path) -> None:
    """KLUE's RoBERTa comes with BERT's tokenizer, whose second text is of a second type."""
    tokenizer = with_ends(make_tokenizer("<pad>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    pairs = [("w1 w2", "w3"), ("w4", "w5 w6 w7")]
    types = encode(tokenizer, pairs, [0, 0], 60).features["token_type_ids"]
    assert {kind for row in types for kind in row} == {0, 1}
    model = make_model("roberta")
    model.config.type_vocab_size = 1
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "token_type_ids" not in encode(load_tokenizer(tmp_path), pairs, [0, 0], 60).features
    agree_on_padding(model, tokenizer)
    assert "token_type_ids" not in encode(tokenizer, pairs, [0, 0], 60).features


def test_a_tokenizer_that_was_saved_cuts_and_pads_as_before(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("<pad>")
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(5)
    backend.enable_padding(length=7)
    before = backend.truncation, backend.padding
    save_tokenizer(tokenizer, tmp_path)
    assert (backend.truncation, backend.padding) == before
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
