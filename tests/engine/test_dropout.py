"""dropout.cpp against a formula in float64, its masks against their readable form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.engine import dropout, fast, kernels_of
from peftlab.engine.bits import Bits, Counter, draw_mask
from peftlab.engine.dropout import TYPES, FastDropout, NormOptions, fuse_residuals, residual_norm
from peftlab.layers import keep_in_fp32
from peftlab.methods import inject, make
from tiny import batch, compare, tiny

COUNTER = Counter(2**40 + 7, 3)
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # rounding of what comes out


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Else what follows would test nothing: apt-get install g++, and ninja comes with peftlab."""
    assert dropout.KERNEL.is_built()


def of_rows(x_type: torch.dtype, r_type: torch.dtype, n: int, width: int) -> list[Tensor]:
    """X and r of so many rows, weight and bias."""
    torch.manual_seed(0)
    shapes = [(x_type, (n, width)), (r_type, (n, width)), (r_type, (width,)), (r_type, (width,))]
    return [torch.randn(shape).to(dtype).requires_grad_() for dtype, shape in shapes]


def expected(tensors: list[Tensor], how: NormOptions) -> Tensor:
    """The formula, in float64."""
    x, r, weight, bias = tensors
    drop = draw_mask((1, *x.shape), how.p, how.counter)[0].double()
    return F.layer_norm(x * drop + r, x.shape[-1:], weight, bias, how.eps)


@pytest.mark.parametrize("width", [16, 48, 384])
@pytest.mark.parametrize("n", [1, 8, 21])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.6])
@pytest.mark.parametrize(("x_type", "r_type"), TYPES)
def test_outputs_and_gradients_are_the_formulas(
    width: int, n: int, p: float, x_type: torch.dtype, r_type: torch.dtype
) -> None:
    how = NormOptions(0.3, p, COUNTER)
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
        x.view(2, 3, 32),
        r.view(2, 3, 32),
        weight.detach(),
        bias.detach(),
        NormOptions(1e-5, 0.1, COUNTER),
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
            y = residual_norm(*tensors, NormOptions(1e-5, 0.1, COUNTER))
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
    y = residual_norm(x, r, weight, bias, NormOptions(1e-5, 0.0, COUNTER))
    assert y[0].isnan().all() and torch.equal(y[1], bias)


def test_rows_that_do_not_fit_are_refused() -> None:
    x, r, weight, bias = (
        tensor.detach() for tensor in of_rows(torch.float32, torch.float32, 2, 18)
    )
    with pytest.raises(RuntimeError, match="rows of a multiple of"):
        residual_norm(x, r, weight, bias, NormOptions(1e-5, 0.0, COUNTER))


def test_what_is_kept_is_the_sum_alone() -> None:
    kept: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    tensors = of_rows(torch.bfloat16, torch.bfloat16, 8, 32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        residual_norm(*tensors, NormOptions(1e-5, 0.1, COUNTER))
    assert kept == [
        (torch.bfloat16, (8, 32)),
        (torch.float32, (8, 2)),
        (torch.bfloat16, (32,)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 48), (1, 1, 9, 16), (5, 7)])
def test_dropout_alone_is_the_mask_both_ways(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of 7 columns by the stream, which keeps its mask."""
    torch.manual_seed(4)
    bits = Bits()
    torch.manual_seed(5)
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = FastDropout(0.25, bits)(x)
    (g,) = torch.autograd.grad(y.sum(), x)  # one number expanded
    mask = draw_mask((1, x[..., 0].numel(), shape[-1]), 0.25, Counter(5, 0)).view(shape)
    if shape[-1] % 16:
        assert sorted(set(g.unique().float().tolist())) == pytest.approx([0, 4 / 3], rel=2**-8)
        mask = g.float()
    assert torch.equal(y, (x.float() * mask).to(dtype)) and torch.equal(g, mask.to(dtype))


def test_there_is_no_second_derivative() -> None:
    """Rather an error than a wrong one."""
    tensors = of_rows(torch.float32, torch.float32, 2, 16)
    y = residual_norm(*tensors, NormOptions(1e-5, 0.1, COUNTER))
    (g, *_) = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1])
def test_the_operations_keep_to_what_they_declare(p: float) -> None:
    x, r, weight, bias = (x.detach() for x in of_rows(torch.bfloat16, torch.float32, 9, 32))
    drawn_by = (p, *COUNTER)
    y, s, moments = torch.ops.peftlab.residual_norm(x, r, weight, bias, 1e-5, *drawn_by)
    ops = torch.ops.peftlab
    for operation, arguments in (
        (ops.dropout, (x, *drawn_by)),
        (ops.residual_norm, (x, r, weight, bias, 1e-5, *drawn_by)),
        (ops.residual_norm_gradient, (y, s, moments, weight, x.dtype, True, *drawn_by)),
        (ops.residual_norm_gradient, (y, s, moments, weight, x.dtype, False, *drawn_by)),
    ):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(operation.default, arguments, test_utils=checks)


# -- in a block --


class End(nn.Module):
    """What ends a half of a block, as BERT has it."""

    def __init__(self, dtype: torch.dtype, p: float = 0.3) -> None:
        super().__init__()
        self.dense: nn.Module = nn.Identity()
        self.dropout: nn.Module = nn.Dropout(p)
        self.LayerNorm = nn.LayerNorm(32, eps=1e-3, dtype=dtype)
        nn.init.normal_(self.LayerNorm.weight)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        hidden_states = self.dense(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = self.LayerNorm(hidden_states + input_tensor)
        return hidden_states


class Other(End):
    """The same parts, otherwise put together."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        x: Tensor = self.LayerNorm(self.dropout(self.dense(hidden_states)))
        return x + input_tensor


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Counter]:
    """Where the bits of each pass of the kernel began that a test has made."""
    found: list[Counter] = []

    def noted(*tensors: Any) -> Tensor:
        found.append(tensors[-1].counter)
        return residual_norm(*tensors)

    monkeypatch.setattr(dropout, "residual_norm", noted)
    return found


def joined(module: End, undo: ExitStack) -> End:
    """`module` as it is inside the engine."""
    bits = Bits()
    if type(module.dropout) is nn.Dropout and not module.dropout._forward_hooks:
        module.dropout = FastDropout(module.dropout.p, bits).train(module.training)
    fuse_residuals(module, bits, undo)
    return module


def rows(dtype: torch.dtype, r_type: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(2, 5, 32).to(dtype), torch.randn(2, 5, 32).to(r_type or dtype)


def test_berts_own_code_is_what_is_looked_for() -> None:
    """Else transformers writes it in another way, and nothing is joined."""
    from transformers.models.bert.modeling_bert import BertOutput, BertSelfOutput
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Output
    from transformers.models.mpnet.modeling_mpnet import MPNetOutput

    for kind in (BertOutput, BertSelfOutput, DebertaV2Output, MPNetOutput, End):
        assert dropout._bytecode(kind.forward.__code__) == dropout._bytecode(
            dropout._bert_forward.__code__
        )


@pytest.mark.parametrize(
    "module", [Other(torch.float32), nn.Linear(2, 2)], ids=["otherwise", "something else"]
)
def test_what_is_not_written_as_berts_is_left_alone(module: nn.Module) -> None:
    with ExitStack() as undo:
        fuse_residuals(module, Bits(), undo)
        assert "forward" not in vars(module)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("x_type", "r_type"), TYPES)
def test_a_joined_end_is_the_formula(
    training: bool, x_type: torch.dtype, r_type: torch.dtype, passes: list[Counter]
) -> None:
    x, r = rows(x_type, r_type)
    module = End(r_type).train(training)
    with ExitStack() as undo:
        y = joined(module, undo)(x, r)
    mask = draw_mask((1, 10, 32), 0.3, passes[0]).view(x.shape) if training else torch.ones(())
    norm = module.LayerNorm
    wanted = F.layer_norm(
        x.double() * mask + r, (32,), norm.weight.double(), norm.bias.double(), norm.eps
    )
    assert len(passes) == 1 and y.dtype == r_type
    assert (y - wanted).norm() <= BOUNDS[r_type] * wanted.norm()


def test_a_norm_kept_in_fp32_is_joined_on_a_base_in_bf16(passes: list[Counter]) -> None:
    """As Houlsby's and BitFit's are."""
    x, r = rows(torch.bfloat16)
    module = End(torch.bfloat16, p=0.0)
    keep_in_fp32(module.LayerNorm, inside=True)
    wanted, g = module(x, r), torch.randn(2, 5, 32).bfloat16()
    learned = list(module.LayerNorm.parameters())
    wanted_gradients = torch.autograd.grad(wanted, learned, g)
    with ExitStack() as undo:
        y = joined(module, undo)(x, r)
        gradients = torch.autograd.grad(y, learned, g)
    assert len(passes) == 1 and y.dtype == torch.bfloat16
    assert (y - wanted).float().norm() <= 2**-8 * wanted.float().norm()
    for one, other in zip(gradients, wanted_gradients, strict=True):
        assert one.dtype == torch.float32 and (one - other).norm() <= 2**-6 * other.norm()


def hooked(module: End) -> None:
    module.LayerNorm.register_forward_hook(lambda module, inputs, output: output * 2)


def hooked_back(module: End) -> None:
    module.LayerNorm.register_full_backward_hook(lambda module, given, gradients: None)


def put_over(module: End) -> None:
    own = module.LayerNorm.forward
    module.LayerNorm.forward = lambda x: own(x) * 2  # type: ignore[method-assign]


def kept_in_fp32_for_good(module: End) -> None:
    keep_in_fp32(module.LayerNorm)


def without_bias(module: End) -> None:
    module.LayerNorm = nn.LayerNorm(32, bias=False, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "change", [hooked, hooked_back, put_over, kept_in_fp32_for_good, without_bias]
)
def test_what_somebody_does_with_the_norm_is_done(
    change: Callable[[End], None], passes: list[Counter]
) -> None:
    x, r = rows(torch.bfloat16)
    module = End(torch.bfloat16, p=0.0)
    change(module)
    wanted = module(x, r)
    with ExitStack() as undo:
        assert torch.equal(joined(module, undo)(x, r), wanted) and not passes


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_without_the_kernel_a_packed_model_computes_the_same(
    kind: str, passes: list[Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout.KERNEL, "is_built", lambda: False)
    assert kernels_of(tiny(kind, torch.float32)) == "sentences.cpp"
    compare(tiny(kind, torch.float32), "lora", 2e-5)
    assert not passes
    x = torch.ones(50, 32, requires_grad=True)
    y = FastDropout(0.25, Bits())(x)
    assert sorted(y.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y)


@pytest.mark.parametrize("width", [16, 7])
def test_of_probability_1_drops_everything(width: int) -> None:
    x = torch.ones(3, width, requires_grad=True)
    y = FastDropout(1.0, Bits())(x)
    assert not y.any() and not torch.autograd.grad(y.sum(), x)[0].any()


def test_somebodys_own_forward_stays() -> None:
    module = End(torch.float32)
    module.forward = lambda hidden_states, input_tensor: input_tensor  # type: ignore[method-assign]
    x, r = rows(torch.float32)
    with ExitStack() as undo:
        assert joined(module, undo)(x, r) is r


def test_shapes_that_torch_stretches_are_torchs(passes: list[Counter]) -> None:
    module = End(torch.float32, p=0.0)
    x, r = torch.randn(5, 1, 32), torch.randn(1, 5, 32)
    wanted = module(x, r)
    with ExitStack() as undo:
        assert torch.equal(joined(module, undo)(x, r), wanted) and not passes


class Doubling(nn.Module):
    """An adapter in the dropout's place, whose outputs are in fp32."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y.float() * 2


def test_an_adapter_behind_the_dropout_comes_before_the_sum(passes: list[Counter]) -> None:
    """In its own precision, where torch would add it in that."""
    torch.manual_seed(4)
    bits = Bits()
    x, r = rows(torch.bfloat16, torch.float32)  # under 3
    module = End(torch.float32)
    with ExitStack() as undo:
        module.dropout = Doubling(FastDropout(0.3, bits))
        y = joined(module, undo)(x, r)
    mask = draw_mask((1, 10, 32), 0.3, Counter(3, 0)).view(x.shape)
    wanted = module.LayerNorm(2 * (x * mask.bfloat16()).float() + r)
    assert len(passes) == 1 and (y - wanted).norm() <= 2**-8 * wanted.norm()


@pytest.mark.parametrize("method", ["lora", "houlsby", "bitfit", "full"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlm-roberta", "mpnet"])
def test_the_end_of_every_half_of_a_block_is_one_pass(
    kind: str, method: str, passes: list[Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftlab.engine.fuse_blocks", lambda *_: None)  # see test_block.py
    model = inject(tiny(kind, torch.float32 if method == "full" else torch.bfloat16), method)
    model.train()
    before = [vars(module).get("forward") for module in model.modules()]
    with fast(model):
        model(**batch()).logits.sum().backward()
    is_cut_inside = kind == "mpnet"  # the sum behind the last attention adds all rows
    assert len(passes) == 2 * model.config.num_hidden_layers - is_cut_inside
    assert [vars(module).get("forward") for module in model.modules()] == before


def test_methods_see_the_same_dropout() -> None:
    """At the start all are one function, Houlsby nearly, so only other masks would show."""
    logits = {}
    for method in (make("lora"), make("bitfit"), make("houlsby", {"init_std": 1e-6}), make("head")):
        model = inject(tiny("bert", p=0.3), method).train()
        torch.manual_seed(11)
        with fast(model):
            logits[method.name] = model(**batch()).logits.detach().float()
    torch.manual_seed(12)
    with fast(model):
        other = model(**batch()).logits.detach().float()
    first, *others = logits.values()
    assert all((one - first).norm() < 0.02 * first.norm() for one in others), logits
    assert (other - first).norm() > 0.2 * first.norm()
