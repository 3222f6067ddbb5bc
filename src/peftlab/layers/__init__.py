"""What methods are made of: the abstract adapter, the LoRA layer, the precision of the base."""

from peftlab.layers.adapter import Adapter, linear_like, replace_linears
from peftlab.layers.lora import LoRALinear
from peftlab.layers.precision import Precision, hold_in_fp32, resolve_device, resolve_precision

__all__ = [
    "Adapter",
    "LoRALinear",
    "Precision",
    "hold_in_fp32",
    "linear_like",
    "replace_linears",
    "resolve_device",
    "resolve_precision",
]
