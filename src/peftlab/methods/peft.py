"""What a method says of itself so that its adapters are HF PEFT's too: names, settings, tensors.

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
        peft_type: PEFT's word for it.
        peft_needs: fields that PEFT's config of this type must have, and their types.
        peft_names: how a tensor's name ends here -> its name in PEFT, of its {layer} or of the
            whole model. Where nothing fits, PEFT's is ours behind `PREFIX`.
        peft_optional: the same ends, of tensors that a file of PEFT's may lack.
    """

    peft_type: ClassVar[str]
    peft_needs: ClassVar[Mapping[str, type]] = {}
    peft_names: ClassVar[Mapping[str, str]] = {}
    peft_optional: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        """PEFT's own settings for this method on `layers`, by their names in the model."""

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        """The method that PEFT's config and tensors mean, or None if it is not this one.

        Raises:
            RequestError: if no method here computes the same.
        """
        return None

    def peft_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """An adapter's tensors in PEFT's shapes, still under our names."""
        return tensors

    def own_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The way back: tensors in PEFT's shapes and under our names, in our shapes."""
        return tensors


def refuse(config: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raise `RequestError` if PEFT's config has a field of `plain` that is neither so nor None."""
    for field, value in plain.items():
        if config.get(field) not in (value, None, []):
            raise RequestError(f"PEFT's {field}={config[field]!r} is not known here")


def layers_with(tensors: Mapping[str, Tensor], ending: str) -> str:
    """The layers that have a tensor of PEFT's with this ending, as `targets` names them.

    Raises:
        RequestError: if there is none.
    """
    names = [
        theirs.removeprefix(PREFIX).removesuffix(ending)
        for theirs in tensors
        if theirs.endswith(ending)
    ]
    if not names:
        raise RequestError(f"the adapter has no tensors that end in {ending}")
    return ",".join(names)
