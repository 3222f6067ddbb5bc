"""A packed batch computes what the padded one does, and nothing of its padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from peftlab.engine import can_pack, dropout, fast, kernels_of, packing, sentences
from peftlab.engine.packing import Layout, Packing, rows_for
from peftlab.methods import inject, make
from peftlab.models.architectures import TABLE
from tiny import batch, compare, passes, tiny

PACKED = sorted(name for name, row in TABLE.items() if row.ends_at_first)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def test_which_architectures_are_packed() -> None:
    assert PACKED == ["bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"]


def laid(lengths: list[int]) -> Packing:
    return packing.make_packing(lengths, max(lengths))


@given(LENGTHS)
def test_every_token_has_a_row_and_comes_back_to_its_place(lengths: list[int]) -> None:
    found, width = laid(lengths), 2
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padded = torch.randn(len(lengths) * max(lengths), width)
    packed = found.pack(padded)
    assert torch.equal(packed[: sum(lengths)], padded[is_token.flatten()])  # in the batch's order
    assert len(packed) == rows_for(sum(lengths)) > sum(lengths)
    assert not packed[sum(lengths) :].any()
    assert torch.equal(found.unpack(packed), padded * is_token.flatten()[:, None])
    assert torch.equal(packed[found.starts], padded.view(*is_token.shape, width)[:, 0])


@given(LENGTHS)
def test_each_way_is_the_other_s_gradient(lengths: list[int]) -> None:
    """<pack(x), y> = <x, unpack(y)> for all y that are 0 where no token is."""
    found = laid(lengths)
    x = torch.randn(len(lengths) * max(lengths), 3, dtype=torch.float64)
    y = torch.randn(rows_for(sum(lengths)), 3, dtype=torch.float64)
    y[sum(lengths) :] = 0
    torch.testing.assert_close((found.pack(x) * y).sum(), (x * found.unpack(y)).sum())


@given(st.integers(1, 10_000))
def test_rows_are_few_numbers_and_little_more_than_the_tokens(n_tokens: int) -> None:
    assert n_tokens < rows_for(n_tokens) <= (n_tokens + 1) * (1 + 1 / 16)


def test_of_rows_there_are_sixteen_numbers_an_octave() -> None:
    assert len({rows_for(n) for n in range(512, 1024)}) <= 17


@pytest.mark.parametrize("kind", PACKED)
def test_layers_get_the_tokens_and_the_last_ones_those_that_are_read(kind: str) -> None:
    """Else the tests that compare would compare the padded batch with itself."""
    model = inject(tiny(kind, torch.float32), make("lora")).train()
    inputs, rows = batch(), []
    layers: Any = TABLE[kind].layers
    last = [m for n, m in model.named_modules() if n.endswith(layers.ffn_in.replace("\\", ""))]
    with fast(model):
        for layer in last:
            layer.register_forward_hook(lambda m, x, y: rows.append(tuple(y.shape[:2])))
        logits = model(**inputs).logits
    n_tokens = int(inputs["attention_mask"].sum())
    assert rows == [(1, rows_for(n_tokens)), (len(logits), 1)]


@pytest.mark.parametrize("kind", PACKED)
def test_full_fine_tuning_trains_what_lies_before_the_blocks(kind: str) -> None:
    """Embeddings, and MPNet's relative positions, have their gradients through the packing."""
    compare(tiny(kind, torch.float32), "full", 2e-5)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_rows_of_no_token_have_no_say(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in them, logits and gradients are the same bits."""
    model = inject(tiny(kind, torch.float32), make("lora")).train()
    with fast(model):
        wanted = passes(model, batch())
    plain = Packing.pack

    def with_something(self: Packing, x: torch.Tensor) -> torch.Tensor:
        packed = plain(self, x)
        packed[self.n_tokens :] = 3.0
        return packed

    with fast(model):
        with monkeypatch.context() as patch:
            patch.setattr(Packing, "pack", with_something)
            logits = model(**batch()).logits
        logits.float().square().sum().backward()
    assert torch.equal(logits, wanted.pop("logits"))
    for name, tensor in wanted.items():
        assert torch.equal(model.get_parameter(name).grad, tensor), name


@pytest.mark.parametrize("kind", PACKED)
def test_without_a_compiler_batches_stay_padded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (sentences, dropout):
        monkeypatch.setattr(part.KERNEL, "is_built", lambda: False)
    model = tiny(kind, torch.float32, p=0.1)
    assert not can_pack(model) and kernels_of(model) == "torch"
    with fast(model) as laid:
        model.train()(**batch()).logits.sum().backward()
        assert laid.packing is None
    compare(tiny(kind, torch.float32), "lora", 2e-5)
    compare(tiny(kind, torch.bfloat16), "lora", 8e-2)


def test_which_models_are_packed() -> None:
    assert can_pack(tiny())
    assert (
        not can_pack(tiny().double())
        and not can_pack(tiny("gpt2"))
        and not can_pack(tiny("albert"))
    )
    looking_ahead, eager, again = tiny(), tiny(), tiny()
    looking_ahead.bert.encoder.layer[0].attention.self.is_causal = True
    eager.set_attn_implementation("eager")
    again.bert.encoder.gradient_checkpointing = True
    assert not any(map(can_pack, (looking_ahead, eager, again)))


class MeanBertForSequenceClassification(transformers.BertForSequenceClassification):
    """A caller's own: the mean of the last hidden states, where BERT's reads the first."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(mean))


class MeanPooler(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.mean(1)


def with_own(part: str) -> Any:
    model = tiny("bert", torch.float32)
    if part == "class":
        model.__class__ = MeanBertForSequenceClassification
    elif part == "pooler":
        model.bert.pooler = MeanPooler()
    else:
        model.bert.pooler.forward = lambda hidden: hidden.mean(1)
    return model


@pytest.mark.parametrize("part", ["class", "pooler", "forward"])
def test_a_model_with_code_of_the_caller_s_own_is_neither_packed_nor_cut(part: str) -> None:
    model = with_own(part).eval()
    inputs = batch(padded=part == "class")
    with torch.no_grad():
        wanted = model(**inputs).logits
        assert not can_pack(model)
        with fast(model):
            torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_caller_s_class_without_a_forward_of_its_own_is_packed() -> None:
    model = tiny("bert", torch.float32)
    model.__class__ = type("Mine", (type(model),), {})
    assert can_pack(model)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
@pytest.mark.parametrize(
    "mask",
    [[[0, 0, 1, 1], [1, 1, 1, 1]], [[1, 0, 1, 1], [1, 1, 1, 0]]],
)
def test_other_masks_than_padding_on_the_right_are_taken_as_they_are(
    kind: str, mask: list[list[int]]
) -> None:
    model = tiny(kind, torch.float32).eval()
    inputs = {"input_ids": torch.arange(5, 13).view(2, 4), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        wanted = model(**inputs).logits
        with fast(model):
            torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_sentence_without_a_token_leaves_the_batch_padded() -> None:
    laid = Layout()
    for mask, packed in (([[1, 0], [1, 1]], True), ([[0, 0], [1, 1]], False)):
        laid.read_mask(torch.tensor(mask))
        assert (laid.packing is not None) is packed
    laid.read_mask(torch.ones(2, 1, 2, 2))
    assert laid.packing is None


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_who_asks_for_hidden_states_gets_them_padded(kind: str) -> None:
    model = tiny(kind, torch.float32).eval()
    with torch.no_grad():
        wanted = model(**batch(), output_hidden_states=True)
        with fast(model):
            found = model(**batch(), output_hidden_states=True)
            backbone = model.base_model(**batch()).last_hidden_state
            rows: list[int] = []
            watched(model, rows)
            model(**batch())
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone, wanted.hidden_states[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    assert rows == [1]  # whoever asks for no more than logits has the last block cut


def watched(model: Any, rows: list[int]) -> None:
    """Write down how many positions the last block computes behind attention."""
    last = model.base_model.encoder.layer[-1].intermediate
    last.register_forward_hook(lambda module, inputs, y: rows.append(y.shape[1]))


@pytest.mark.parametrize("kind", PACKED)
def test_a_batch_without_a_mask_is_taken_as_it_is(kind: str) -> None:
    model: PreTrainedModel = tiny(kind, torch.float32).eval()
    inputs = {"input_ids": batch(padded=False)["input_ids"]}
    with torch.no_grad():
        wanted = model(**inputs).logits
        with fast(model) as laid:
            torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)
            assert laid.packing is None


def test_nothing_is_laid_behind_a_pass_even_one_that_fails() -> None:
    model = tiny().eval()
    with fast(model) as laid:
        model(**batch())
        assert laid.packing is None
        ids = torch.full((2, 3), 10_000)  # no such token
        with pytest.raises(IndexError):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        assert laid.packing is None


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_hidden_states_that_the_configuration_asks_for_come_padded_too(kind: str) -> None:
    model = tiny(kind, torch.float32).eval()
    model.config.output_hidden_states = True
    with torch.no_grad():
        wanted = model(**batch()).hidden_states
        with fast(model):
            found = model(**batch()).hidden_states
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
