"""(IA)³: learn a factor for each number in the keys, the values and the feed-forward.

    y = l ⊙ (x Wᵀ + c)        keys and values: l (out,)
    y = (l ⊙ x) Wᵀ + c        the feed-forward's second layer: l (in,)

Paper      Liu et al. 2022, arXiv:2205.05638, section 3.3
Reference  PEFT's tuners/ia3; parity: tests/methods/test_parity_peft.py
Shapes     W (out, in), c (out,) frozen · l (out,) or (in,) trained
Init       l = 1  =>  y = x Wᵀ + c at step 0
Cost       out, or in, trained parameters a layer; no cost after merging l into W, and into c
Departs    PEFT's default for BERT-like models scales the input of the attention's output layer too,
           whose name ends as the FFN's does; the paper doesn't, nor does this. l, a vector, never
           decays. l is not rounded to the precision of x: bf16 has no 1.003
Raises     RequestError if a target matches no layer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from peftlab.layers import (
    Adapter,
    Linear,
    PreTrainedModel,
    WeightAdapter,
    adapter_dtype,
    device_of,
    exact,
    features,
    rescaled,
)
from peftlab.methods.base import STRICT, adapt
from peftlab.methods.peft import PREFIX, InPeft
from peftlab.methods.registry import register
from peftlab.models import Targets, find_targets


@dataclass(frozen=True, config=STRICT)
@register
class IA3(InPeft):
    """Scale the outputs of some layers and the inputs of others.

    Attributes:
        targets: the layers whose outputs are scaled, see `peftlab.models.find_targets`.
        feedforward: the layers whose inputs are scaled. Either may be empty.
    """

    name: ClassVar[str] = "ia3"
    summary: ClassVar[str] = "a factor for each key, value and FFN activation"
    paper: ClassVar[str] = "arXiv:2205.05638"
    default_lr: ClassVar[float] = 3e-3
    published_lr: ClassVar[float | None] = 3e-3  # for T0, by Adafactor
    peft_type: ClassVar[str] = "IA3"
    peft_names: ClassVar[Mapping[str, str]] = {
        "output_scale": "{layer}.ia3_l",
        "input_scale": "{layer}.ia3_l",
    }

    targets: str = "key,value"
    feedforward: str = "ffn-out"

    def inject(self, model: PreTrainedModel) -> Targets:
        names = find_targets(model, self.feedforward).names if self.feedforward else []
        feedforward = {id(model.get_submodule(name)) for name in names}
        return adapt(
            model,
            ",".join(filter(None, [self.targets, self.feedforward])),
            lambda base: ScaledInput(base) if id(base) in feedforward else ScaledOutput(base),
        )

    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        inputs = [name for name, layer in layers.items() if isinstance(layer, ScaledInput)]
        return {"feedforward_modules": inputs}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        shapes = {
            name.removeprefix(PREFIX).removesuffix(".ia3_l"): tensor.shape
            for name, tensor in tensors.items()
            if name.endswith(".ia3_l")
        }
        inputs = [name for name, shape in shapes.items() if shape[0] == 1]
        outputs = [name for name in shapes if name not in inputs]
        return cls(targets=",".join(outputs), feedforward=",".join(inputs))

    def peft_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """PEFT has factors of outputs as a column, (out, 1), and of inputs as a row, (1, in)."""
        shapes = {".output_scale": (-1, 1), ".input_scale": (1, -1)}
        reshaped = {
            name: tensor.view(shape)
            for name, tensor in tensors.items()
            for ending, shape in shapes.items()
            if name.endswith(ending)
        }
        return tensors | reshaped

    def own_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t.flatten() if n.endswith("_scale") else t for n, t in tensors.items()}


class ScaledOutput(Adapter):
    """A linear layer whose outputs have a factor each."""

    has_gain: ClassVar[bool] = True

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.base = base
        self.output_scale = _ones(features(base).outside, base)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        return rescaled(self.base(x), self.output_scale)

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        return weight * self.output_scale[:, None]

    def merged_bias(self) -> Tensor | None:
        bias: Tensor | None = self.base.bias
        return None if bias is None else exact(bias) * self.output_scale


class ScaledInput(WeightAdapter):
    """A linear layer whose inputs have a factor each."""

    has_gain: ClassVar[bool] = True

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.base = base
        self.input_scale = _ones(features(base).inside, base)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        y: Tensor = self.base(rescaled(x, self.input_scale))
        return y

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        return weight * self.input_scale


def _ones(size: int, base: Linear) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, dtype=adapter_dtype(base), device=device_of(base)))
