"""How a method's adapters become HF PEFT's: PEFT's names, settings and shapes of tensors for it.

A method that PEFT has inherits from `InPeft`; all others are saved in peftlab's layout alone.
`peftlab.adapters` reads and writes the files.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from peftlab.errors import RequestError
from peftlab.layers import Adapter
from peftlab.methods.base import Method

PREFIX = "base_model.model."  # what PEFT puts before the names of the model's own tensors


class InPeft(Method):
    """A method that HF PEFT has too.

    Attributes:
        peft_type: PEFT's name for it.
        peft_needs: fields that PEFT's config of this type must have, and their types.
        peft_names: ending of a tensor's name here -> its name in PEFT, with {layer} or for the
            whole model. A name of no such ending is the same in PEFT, behind `PREFIX`.
        peft_optional: the endings of tensors that PEFT's file may lack.
    """

    peft_type: ClassVar[str]
    peft_needs: ClassVar[Mapping[str, type]] = {}
    peft_names: ClassVar[Mapping[str, str]] = {}
    peft_optional: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        """PEFT's settings for this method on `layers`, which are by their names in the model."""

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        """The method that PEFT's config and tensors describe, or None if it is not this one.

        Raises:
            RequestError: if no method here computes the same.
        """
        return None

    def peft_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """An adapter's tensors in PEFT's shapes, still under our names."""
        return tensors

    def own_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `peft_tensors`: our shapes from PEFT's, under our names."""
        return tensors


def refuse(config: Mapping[str, Any], neutral: Mapping[str, Any]) -> None:
    """Raise `RequestError` if a field of PEFT's config has another value than its neutral one."""
    for field, value in neutral.items():
        if config.get(field) not in (value, None, []):
            raise RequestError(f"PEFT's {field}={config[field]!r} is not known here")


def layers_with(tensors: Mapping[str, Tensor], ending: str) -> str:
    """The layers that have a tensor with this ending in PEFT's file, as a value of `targets`.

    Raises:
        RequestError: if there is none.
    """
    names = [
        name.removeprefix(PREFIX).removesuffix(ending) for name in tensors if name.endswith(ending)
    ]
    if not names:
        raise RequestError(f"the adapter has no tensors that end in {ending}")
    return ",".join(names)
