"""Put a method into a loaded model, once; a model that can't take it is refused with the remedy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from peftlab.errors import RequestError
from peftlab.layers import (
    QUANTISED,
    PreTrainedModel,
    QuantisedLinear,
    keep_in_fp32,
    weight_precision,
)
from peftlab.layers.precision import DTYPES
from peftlab.methods.base import Method
from peftlab.methods.registry import resolve_method
from peftlab.models import check_compiled, check_model, head_names, head_parameters, state_of


def inject(model: PreTrainedModel, method: Method | str) -> PreTrainedModel:
    """Make a loaded model trainable by `method`, in place; returns it.

    Raises:
        RequestError: if a target matches no layer, the base is held in a precision that the
            method can't train, the model has been injected before or is inside the engine, or a
            method of the caller's own leaves a part of the head frozen.
    """
    check_model(model)
    check_compiled(model)
    state = state_of(model)
    state.check_plain("injected")
    method = resolve_method(method)
    if injected(model) is not None:
        raise RequestError(f"this model is already injected with {injected(model)}; load it again")
    _check_precision(model, method)
    _keep_head_in_fp32(model)
    state.targets = method.inject(model)
    frozen = [name for name, p in head_parameters(model).items() if not p.requires_grad]
    if frozen:
        raise RequestError(
            f"{method.name} leaves a part of the head frozen: {frozen[0]}; inject must let all of "
            "it train, as peftlab.methods.train_head_only does"
        )
    state.method = method
    state.trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    return model


def injected(model: PreTrainedModel) -> Method | None:
    """The method that `model` was injected with, if any."""
    method = state_of(model).method
    return method if isinstance(method, Method) else None


def _check_precision(model: PreTrainedModel, method: Method) -> None:
    precision = weight_precision(model.get_submodule(model.base_model_prefix))
    if any(isinstance(module, QuantisedLinear) for module in _head_modules(model)):
        raise RequestError("the head is quantised, and every method trains it; load the model anew")
    if precision not in (*DTYPES, *QUANTISED, "float64"):
        raise RequestError(
            f"the base is held in {precision}; load it in fp32 or bf16, as with "
            "dtype=torch.bfloat16"
        )
    if method.base_precision == "fp32" and precision not in ("fp32", "float64"):
        raise RequestError(
            f"{method.name} updates the base itself and needs it in fp32, but it is held in "
            f"{precision}; load it with precision='fp32' "
            "(it then computes in bf16 by autocast where that is fast)"
        )
    if method.base_precision == "nf4" and precision != "nf4":
        raise RequestError(
            f"{method.name} is made for a base in four bits, and this one is held in "
            f"{precision}; load it with precision='nf4', or take lora"
        )


def _keep_head_in_fp32(model: PreTrainedModel) -> None:
    """Hold the head in fp32 and let it compute there, also in a model that transformers loaded.

    Under autocast logits would take few values, and those of a regression far from 0 even fewer:
    at 2,000 bf16 has steps of 8. A head in float64 stays in float64.
    """
    for name in head_names(model):
        module = model.get_submodule(name)
        if all(p.dtype.itemsize <= torch.float32.itemsize for p in module.parameters()):
            keep_in_fp32(module)


def _head_modules(model: PreTrainedModel) -> Iterator[nn.Module]:
    for name in head_names(model):
        yield from model.get_submodule(name).modules()
