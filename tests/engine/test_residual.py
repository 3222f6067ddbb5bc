"""residual.cpp against a formula in float64, its masks against their readable form."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tests.tiny import tiny
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.engine import fast, residual
from peftlab.engine.attention import Bits
from peftlab.engine.philox import Counter, mask
from peftlab.engine.residual import How, join_residuals, residual_norm

COUNTER = Counter(2**40 + 7, 3)
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # rounding of what comes out
PAIRS = sorted(residual.DTYPES, key=str)


def test_it_can_be_built_here() -> None:
    assert residual.is_built()


def of_rows(x_type: torch.dtype, r_type: torch.dtype, n: int, width: int) -> list[Tensor]:
    """X and r of so many rows, weight and bias."""
    torch.manual_seed(0)
    shapes = [(x_type, (n, width)), (r_type, (n, width)), (r_type, (width,)), (r_type, (width,))]
    return [torch.randn(shape).to(dtype).requires_grad_() for dtype, shape in shapes]


def expected(tensors: list[Tensor], how: How) -> Tensor:
    """The formula, in float64."""
    x, r, weight, bias = tensors
    drop = mask((1, *x.shape), how.p, how.counter)[0].double()
    return F.layer_norm(x * drop + r, x.shape[-1:], weight, bias, how.eps)


@pytest.mark.parametrize("width", [16, 48, 384])
@pytest.mark.parametrize("n", [1, 8, 21])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.6])
@pytest.mark.parametrize(("x_type", "r_type"), PAIRS)
def test_outputs_and_gradients_are_the_formulas(
    width: int, n: int, p: float, x_type: torch.dtype, r_type: torch.dtype
) -> None:
    how = How(1e-5, p, COUNTER)
    tensors = of_rows(x_type, r_type, n, width)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y, wanted = residual_norm(*tensors, how), expected(exact, how)
    g = torch.randn(y.shape).to(r_type)
    assert y.dtype == r_type and (y.double() - wanted).norm() <= BOUNDS[r_type] * wanted.norm()
    found = torch.autograd.grad(y, tensors, g)
    for one, other, tensor in zip(
        found, torch.autograd.grad(wanted, exact, g.double()), tensors, strict=True
    ):
        assert one.dtype == tensor.dtype
        assert (one.double() - other).norm() <= 2 * BOUNDS[one.dtype] * other.norm()


def test_frozen_weights_get_no_gradient_and_any_shape_is_taken() -> None:
    x, r, weight, bias = of_rows(torch.bfloat16, torch.bfloat16, 6, 32)
    y = residual_norm(
        x.view(2, 3, 32), r.view(2, 3, 32), weight.detach(), bias.detach(), How(1e-5, 0.1, COUNTER)
    )
    y.sum().backward()  # one number expanded
    assert y.shape == (2, 3, 32) and x.grad is not None and r.grad is not None
    assert weight.grad is None and bias.grad is None


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    passes = []
    usual = torch.get_num_threads()
    for n in (1, threads):
        torch.set_num_threads(n)
        try:
            tensors = of_rows(torch.bfloat16, torch.bfloat16, 203, 64)
            y = residual_norm(*tensors, How(1e-5, 0.1, COUNTER))
            passes.append([y, *torch.autograd.grad(y.float().square().sum(), tensors)])
        finally:
            torch.set_num_threads(usual)
    assert all(torch.equal(one, other) for one, other in zip(*passes, strict=True))


def test_what_is_no_number_stays_none_and_a_constant_row_is_no_division_by_zero() -> None:
    x, r, weight, bias = (
        tensor.detach() for tensor in of_rows(torch.bfloat16, torch.bfloat16, 2, 32)
    )
    x[0, 3] = torch.nan
    x[1], r[1] = 1.0, 2.0
    y = residual_norm(x, r, weight, bias, How(1e-5, 0.0, COUNTER))
    assert y[0].isnan().all() and torch.equal(y[1], bias)


def test_rows_that_do_not_fit_are_refused() -> None:
    x, r, weight, bias = (
        tensor.detach() for tensor in of_rows(torch.float32, torch.float32, 2, 24)
    )
    with pytest.raises(RuntimeError, match="rows of a multiple of 16 numbers"):
        residual_norm(x, r, weight, bias, How(1e-5, 0.0, COUNTER))


def test_what_is_kept_is_the_sum_alone() -> None:
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    tensors = of_rows(torch.bfloat16, torch.bfloat16, 8, 32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        residual_norm(*tensors, How(1e-5, 0.1, COUNTER))
    assert kept == [(8, 32), (8, 2), (32,)]


class Other(nn.Module):
    """BERT's parts, otherwise put together."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = nn.Linear(32, 32), nn.Dropout(), nn.LayerNorm(32)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        x: Tensor = self.LayerNorm(self.dropout(self.dense(hidden_states)))
        return x + input_tensor


def test_what_is_not_put_together_as_berts_is_left_alone() -> None:
    with ExitStack() as undo:
        module = Other()
        join_residuals(module, Bits(), undo)
        assert "forward" not in vars(module)


def calls(model: Any) -> list[str]:
    """The names of the residual sums' parts that compute in a step of training, as plain layers."""
    called: list[str] = []
    for name, module in model.named_modules():
        if type(module) is nn.LayerNorm and "layer." in name:
            own = module.forward

            def noted(x: Tensor, own: Any = own, name: str = name) -> Tensor:
                called.append(name)
                found: Tensor = own(x)
                return found

            module.forward = noted
    model.train()
    ids = torch.arange(5, 25).view(2, 10)
    with fast(model):
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    return called


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_all_but_the_one_that_is_cut_are_one_pass(kind: str) -> None:
    model = tiny(kind)
    (cut,) = calls(model)
    assert cut.endswith("attention.output.LayerNorm" if kind != "mpnet" else "attention.LayerNorm")
    assert not any("forward" in vars(m) for m in model.modules() if type(m) is not nn.LayerNorm)
