"""What methods are made of: adapters, the LoRA layer, and the frozen base."""

from peftlab.layers.adapter import Adapter, WeightAdapter, Wrapper, exact, replace_linears
from peftlab.layers.linear import (
    Linear,
    adapter_dtype,
    base_dtype,
    device_of,
    features,
    is_conv1d,
    is_linear,
    linear_like,
    product,
    weight_of,
)
from peftlab.layers.lora import (
    LoRALinear,
    LowRank,
    Pair,
    add_low_rank,
    dropout,
    low_rank_update,
    new_pair,
)
from peftlab.layers.nf4 import NF4Linear, quantiser
from peftlab.layers.precision import (
    Precision,
    keep_in_fp32,
    quantise_linears,
    resolve_device,
    resolve_precision,
    weight_precision,
)

__all__ = [
    "Adapter",
    "Linear",
    "LoRALinear",
    "LowRank",
    "NF4Linear",
    "Pair",
    "Precision",
    "WeightAdapter",
    "Wrapper",
    "adapter_dtype",
    "add_low_rank",
    "base_dtype",
    "device_of",
    "dropout",
    "exact",
    "features",
    "is_conv1d",
    "is_linear",
    "keep_in_fp32",
    "linear_like",
    "low_rank_update",
    "new_pair",
    "product",
    "quantise_linears",
    "quantiser",
    "replace_linears",
    "resolve_device",
    "resolve_precision",
    "weight_of",
    "weight_precision",
]
