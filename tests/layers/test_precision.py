from types import SimpleNamespace

import pytest
import torch
from torch import nn

from peftlab.errors import RequestError
from peftlab.layers import (
    QUANTISED,
    Int8Linear,
    Precision,
    keep_in_fp32,
    precision,
    quantise_linears,
    resolve_device,
    resolve_precision,
    weight_precision,
)


@pytest.mark.parametrize(
    ("words", "value", "reason"),
    [
        ({"GenuineIntel", "avx512_bf16", "amx_bf16"}, "bf16", "AMX"),
        ({"AuthenticAMD", "avx512_bf16"}, "bf16", "the processor has AVX512-BF16"),
        ({"GenuineIntel", "avx512_bf16"}, "fp32", "half as fast"),
        ({"AuthenticAMD", "avx2"}, "fp32", "neither AMX nor AVX512-BF16"),
        (set(), "fp32", "only Linux tells"),
    ],
)
def test_auto_is_bf16_exactly_where_the_processor_gains_by_it(
    words: set[str], value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "processor_words", lambda: words)
    found, why = resolve_precision("auto", "cpu")
    assert found == Precision(value, value)
    assert reason in why


def test_what_is_asked_for_is_taken() -> None:
    assert resolve_precision("fp32") == (Precision("fp32", "fp32"), "asked for")


@pytest.mark.parametrize(
    ("kind", "asked", "held", "why"),
    [
        ("wide", "int8", "int8", "asked for, rows by"),
        ("narrow", "int8", "int7", "int8 asked for; with AVX2 alone weights have 7 bits, rows by"),
        ("wide", "int7", "int7", "asked for, rows by"),
        ("narrow", "int7", "int7", "asked for, rows by"),
        (None, "int8", "int8", "slow"),
    ],
)
def test_weights_are_as_wide_as_the_processor_s_sums_allow(
    kind: str | None, asked: str, held: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "product_kind", lambda device: kind)
    found, reason = resolve_precision(asked, "cpu")
    assert found.base == held
    assert why in reason


def test_unknown_words_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(RequestError, match="auto, fp32, bf16, int8, int7 or nf4, got 'int3'"):
        resolve_precision("int3")
    with pytest.raises(RequestError, match="auto, cpu, cuda or mps"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused() -> None:
    assert resolve_device().value == "cpu"
    with pytest.raises(
        RequestError, match=r"not available .no CUDA device.; on this machine: auto, cpu"
    ):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("capability", "built", "has_kernels"),
    [
        ((6, 1), ["sm_75", "sm_80", "sm_90a", "compute_120"], False),
        ((8, 9), ["sm_80"], True),  # of the same generation
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # compiled as it is loaded
        ((9, 0), ["gfx90a"], True),  # ROCm's names say nothing
        ((9, 0), [], True),
    ],
)
def test_a_card_that_torch_was_not_built_for_is_not_taken(
    capability: tuple[int, int],
    built: list[str],
    has_kernels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    if has_kernels:
        assert resolve_device() == ("cuda", "a card") and resolve_device("cuda").value == "cuda"
        return
    words = "has no kernels for a card, of CUDA capability " + ".".join(map(str, capability))
    assert resolve_device().value == "cpu" and words in resolve_device().reason
    with pytest.raises(RequestError, match=words):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("card", "fastest"),
    [("gfx1030", "fp32"), ("gfx906:sramecc+", "fp32"), ("gfx90a", "bf16"), ("gfx1100", "bf16")],
)
def test_rocm_s_cards_are_told_by_their_architecture(
    card: str, fastest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ROCm calls a capability is the architecture's number: 10.3 of one without bf16."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    properties = SimpleNamespace(gcnArchName=card)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    assert resolve_precision("auto", "cuda")[0].compute == fastest


def test_layers_held_in_fp32_take_inputs_of_any_precision() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4)).bfloat16()
    keep_in_fp32(module)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module(torch.randn(2, 4).bfloat16()).dtype == torch.float32


def test_fp32_inside_a_bf16_base_gives_back_what_the_base_goes_on_with() -> None:
    norm = nn.LayerNorm(4).bfloat16()
    keep_in_fp32(norm, inside=True)
    x = torch.randn(2, 4).bfloat16()
    assert norm.weight.dtype == torch.float32
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x.float(), (4,)).bfloat16())
    assert norm(x.float()).dtype == torch.float32  # a base that was cast since


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("held", QUANTISED)
def test_the_named_layers_are_quantised_and_the_rest_is_in_what_it_computes_in(
    held: str, compute: str
) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4)).eval()
    model.register_buffer("frequencies", torch.ones(3))
    quantise_linears(model, ["0"], compute, held)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
    assert isinstance(model[0], QUANTISED[held])
    assert not model[0].training
    assert isinstance(model[2], nn.Linear)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.frequencies.dtype == torch.float32
    assert model(torch.randn(2, 8, dtype=dtype)).dtype == dtype
    assert weight_precision(model) == held
    assert weight_precision(model[1:]) == compute


def test_of_a_mapped_file_matrices_alone_are_left_when_the_first_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else every page that quantising reads stays in memory to the end: 380 MiB of mpnet's."""
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    of_file = {name: p.data for name, p in model.named_parameters()}  # held, so none is made there
    left: list[set[str]] = []

    class Watched(Int8Linear):
        def quantise(self, weight: torch.Tensor) -> None:
            now = {p.data_ptr() for p in model.parameters()}
            left.append({name for name, tensor in of_file.items() if tensor.data_ptr() in now})
            super().quantise(weight)

    monkeypatch.setitem(QUANTISED, "int8", Watched)
    quantise_linears(model, ["0", "2"], "fp32", "int8")
    assert left == [{"0.weight", "2.weight"}, {"2.weight"}]


def test_what_shares_a_matrix_that_is_quantised_is_in_what_it_computes_in() -> None:
    model = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6))
    model[1].weight = model[0].weight
    quantise_linears(model, ["1"], "bf16", "int8")
    assert model[0].weight.dtype == torch.bfloat16
    assert model(torch.tensor([3])).dtype == torch.bfloat16
    quantise_linears(model, ["1"], "bf16", "int8")  # of what is quantised already
    assert weight_precision(model) == "int8"


def test_a_modules_precision_is_the_lowest_of_all() -> None:
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    assert weight_precision(mixed) == "bf16"
    assert weight_precision(nn.Linear(2, 2).double()) == "float64"
    assert weight_precision(nn.Linear(2, 2).half()) == "float16"


def test_nf4_computes_in_what_auto_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor_words", lambda: {"amx_bf16"})
    assert resolve_precision("nf4")[0] == Precision("nf4", "bf16")
    monkeypatch.setattr(precision, "processor_words", set)
    assert resolve_precision("nf4")[0] == Precision("nf4", "fp32")
    assert resolve_precision("bf16")[0] == Precision("bf16", "bf16")


def test_a_method_that_needs_another_base_computes_in_what_was_asked() -> None:
    asked = Precision("bf16", "bf16")
    assert asked.of_base(None) == asked
    assert asked.of_base("fp32") == Precision("fp32", "bf16")
    assert asked.of_base("fp32").autocast
    assert not asked.autocast and not Precision("fp32", "fp32").autocast


def test_a_module_that_returns_more_than_a_tensor_is_not_kept_inside_a_base_of_16_bits() -> None:
    """I-BERT's norm returns its scale, too."""

    class Scaled(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
            return super().forward(x), 1.0

    norm = Scaled(4).bfloat16()
    keep_in_fp32(norm, inside=True)
    with pytest.raises(RequestError, match=r"Scaled can't be kept in fp32 .* take precision fp32"):
        norm(torch.randn(2, 4).bfloat16())


def test_what_is_held_in_fp32_computes_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))
    inputs = torch.randn(64, 16)
    hidden = model[0](inputs).bfloat16().float()
    keep_in_fp32(model[1])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(inputs)
        assert model[0](inputs).dtype == torch.bfloat16  # autocast is on again behind it
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, model[1](hidden), rtol=0.05, atol=0.02)
    assert len(outputs[:, 0].unique()) == 64  # in bf16 some would meet


def test_autocast_is_on_again_behind_a_layer_that_failed() -> None:
    layer = nn.Linear(4, 4)
    keep_in_fp32(layer)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="shapes"):
            layer(torch.randn(2, 3))
        assert torch.is_autocast_enabled("cpu")
