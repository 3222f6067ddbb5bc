"""VeRA: one frozen pair for the whole model, drawn from a key, cut to each layer's size."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from peftlab.methods import VeRA, inject
from peftlab.methods.vera import Projections, VeRALinear

ALL = "query,ffn-in,ffn-out"  # 12 -> 12, 12 -> 20 and 20 -> 12


def model_with(method: VeRA, seed: int = 0, blocks: int = 2) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=blocks, num_attention_heads=2,
        intermediate_size=20, max_position_embeddings=16,
    )  # fmt: skip
    return inject(BertForSequenceClassification(config), method)


def layers(model: nn.Module) -> list[VeRALinear]:
    return [layer for layer in model.modules() if isinstance(layer, VeRALinear)]


def test_all_layers_share_one_pair() -> None:
    found = layers(model_with(VeRA(rank=6, targets=ALL)))
    assert len(found) == 6
    for index in (0, 1):
        assert len({layer.pair[index].untyped_storage().data_ptr() for layer in found}) == 1
    assert not any("vera_A" in name for layer in found for name, _ in layer.named_parameters())


def test_the_pair_is_still_one_after_moving_and_copying() -> None:
    for other in (
        model_with(VeRA(rank=6, targets=ALL)).double(),
        copy.deepcopy(model_with(VeRA(rank=6, targets=ALL))),
    ):
        assert len({layer.shared.vera_A.data_ptr() for layer in layers(other)}) == 1


def test_a_layer_that_has_computed_can_be_copied_and_pickled() -> None:
    layer = VeRALinear(nn.Linear(7, 5), Projections(4, 7, 5, seed=0), 0.1)
    nn.init.normal_(layer.vera_lambda_b)
    x = torch.randn(3, 7)
    wanted = layer(x)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert again.shared.cache is None
        assert torch.equal(again(x), wanted)


def test_layers_of_one_input_share_one_product_and_its_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And layers of another input, or a second batch, don't."""
    # three: the first block's input needs no gradient, which alone tells it from the second's
    model = model_with(VeRA(rank=6, targets="query,value"), blocks=3).double().eval()
    with torch.no_grad():
        for layer in layers(model):
            layer.vera_lambda_b.normal_()
    made: list[torch.Tensor] = []
    linear = functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        made.extend([x] if weight.shape == (6, 12) else [])
        return linear(x, weight, *rest)

    monkeypatch.setattr(functional, "linear", watched)
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(Projections, "inner", lambda self, x: watched(x, self.vera_A))
        for _ in range(2):
            made.clear()
            model.zero_grad()
            ids = torch.arange(12).view(2, 6)
            model(input_ids=ids).logits.square().sum().backward()
        assert len(made) == (3 if shared else 6)  # one or two a block
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_two_models_of_one_key_have_one_pair_bit_for_bit() -> None:
    pairs = {
        key: [layers(model_with(VeRA(rank=6, targets=ALL, projection_seed=key), seed))[0].shared
              for seed in (0, 1)]
        for key in (0, 1)
    }  # fmt: skip
    for one, other in pairs.values():
        assert torch.equal(one.vera_A, other.vera_A)
        assert torch.equal(one.vera_B, other.vera_B)
    assert not torch.equal(pairs[0][0].vera_A, pairs[1][0].vera_A)


def test_the_pair_follows_the_runs_seed_unless_it_has_its_own() -> None:
    def pair(seed: int, **settings: int) -> Tensor:
        return layers(model_with(VeRA(rank=6, targets=ALL, **settings), seed))[0].shared.vera_A

    assert torch.equal(pair(0), pair(0))
    assert not torch.equal(pair(0), pair(1))


def test_the_pair_has_the_largest_sizes_and_is_cut_for_the_others() -> None:
    model = model_with(VeRA(rank=6, targets=ALL))
    shared = layers(model)[0].shared
    assert (shared.vera_A.shape, shared.vera_B.shape) == ((6, 20), (20, 6))
    for layer in layers(model):
        inside, outside = layer.base.in_features, layer.base.out_features
        vera_A, vera_B = layer.pair
        assert torch.equal(vera_A, shared.vera_A[:, :inside])
        assert torch.equal(vera_B, shared.vera_B[:outside])
        assert (layer.vera_lambda_d.shape, layer.vera_lambda_b.shape) == ((6,), (outside,))


def test_the_pair_is_drawn_uniformly_within_kaimings_bounds() -> None:
    shared = Projections(rank=300, inside=200, outside=400, seed=0)
    for drawn, fan in ((shared.vera_A, 200), (shared.vera_B, 300)):
        bound = math.sqrt(6 / fan)
        assert 0.999 * bound < drawn.abs().max() <= bound
        assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_drawing_the_pair_leaves_the_runs_own_draws_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Projections(rank=6, inside=5, outside=4, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_output_is_the_papers_formula() -> None:
    """Equation 2 with diagonal matrices: W x + c + Λ_b B Λ_d A x."""
    layer = VeRALinear(nn.Linear(7, 5).double(), Projections(4, 9, 8, seed=0).double(), 0.1)
    with torch.no_grad():
        layer.vera_lambda_b.normal_()
        layer.vera_lambda_d.normal_()
    x = torch.randn(3, 7).double()
    vera_A, vera_B = layer.shared.vera_A[:, :7], layer.shared.vera_B[:5]
    delta = layer.vera_lambda_b.diag() @ vera_B @ layer.vera_lambda_d.diag() @ vera_A
    torch.testing.assert_close(layer(x), layer.base(x) + x @ delta.T)
    assert (layer(x) - layer.base(x)).abs().max() > 0.1


def test_vectors_start_at_d_initial_and_zero() -> None:
    for layer in layers(model_with(VeRA(rank=6, targets=ALL, d_initial=0.3))):
        assert torch.equal(layer.vera_lambda_d, torch.full((6,), 0.3))
        assert not layer.vera_lambda_b.any()


def test_a_product_of_what_was_changed_in_place_is_made_again() -> None:
    shared = Projections(4, 6, 6, seed=0)
    x = torch.randn(3, 6)
    trained = torch.zeros(6, requires_grad=True)
    given = x + trained
    first = shared.inner(given)
    assert shared.inner(given) is first
    with torch.no_grad():
        given.mul_(2.0)
    torch.testing.assert_close(shared.inner(given), 2 * first)


def test_the_shared_product_is_made_again_where_a_or_autocast_is_another() -> None:
    shared, x = Projections(4, 6, 6, seed=0), torch.randn(2, 6, requires_grad=True)
    first = shared.inner(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = shared.inner(x)
    assert cast.dtype == torch.bfloat16 and shared.inner(x).dtype == torch.float32
    with torch.no_grad():
        shared.vera_A.mul_(2)
    torch.testing.assert_close(shared.inner(x), 2 * first)


def test_a_product_that_was_made_without_autograd_is_made_again_for_it() -> None:
    """Else the gradient of all that lies before the layer would be lost in silence."""
    shared = layers(model_with(VeRA(rank=6)))[0].shared
    x = torch.randn(3, 12, requires_grad=True)
    with torch.no_grad():
        made = shared.inner(x)
    assert not made.requires_grad and shared.inner(x).requires_grad
