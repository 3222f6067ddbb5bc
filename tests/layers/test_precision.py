import pytest
import torch
from torch import nn

from peftlab.errors import RequestError
from peftlab.layers import hold_in_fp32, precision, resolve_device, resolve_precision


def test_auto_is_bf16_exactly_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_bf16_instructions", lambda: "AVX512-BF16")
    assert resolve_precision("auto", "cpu") == ("bf16", "the processor has AVX512-BF16")
    monkeypatch.setattr(precision, "_bf16_instructions", lambda: None)
    assert resolve_precision("auto", "cpu").value == "fp32"


def test_what_is_asked_for_is_taken() -> None:
    assert resolve_precision("fp32") == ("fp32", "asked for")


def test_unknown_words_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(RequestError, match="auto, fp32, bf16, got 'int3'"):
        resolve_precision("int3")
    with pytest.raises(RequestError, match="auto, cpu, cuda or mps"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused() -> None:
    assert resolve_device().value == "cpu"
    with pytest.raises(RequestError, match="'cuda' is not available; on this machine: auto, cpu"):
        resolve_device("cuda")


def test_layers_held_in_fp32_take_inputs_of_any_precision() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4)).bfloat16()
    hold_in_fp32(module)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module(torch.randn(2, 4).bfloat16()).dtype == torch.float32
