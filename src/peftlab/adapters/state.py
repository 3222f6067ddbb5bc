"""What an adapter is: all that the method added, and all else that training may change."""

from __future__ import annotations

from torch import Tensor

from peftlab.errors import RequestError
from peftlab.layers import PreTrainedModel, Wrapper
from peftlab.models import head_parameters


def adapter_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors, by full name, that make the base this model. Shared ones are there once.

    That is every trainable parameter, the head's among them, and every tensor of a wrapper that
    is not its base's: LoRA-FA's frozen A, VeRA's shared pair, Delta-LoRA's constants.
    """
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    wrappers = [n for n, module in model.named_modules() if isinstance(module, Wrapper)]
    added, base = tuple(f"{n}." for n in wrappers), tuple(f"{n}.base." for n in wrappers)
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        of_method = name.startswith(added) and not name.startswith(base)
        if (of_method or name in trainable) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def check_head(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Raise `RequestError` unless the whole head is in `state`."""
    lacking = [name for name in head_parameters(model) if name not in state]
    if lacking:
        raise RequestError(
            f"the head is not all trained and saved: {lacking[0]} is frozen; "
            "an adapter without its head can't be used again"
        )


def fill(model: PreTrainedModel, given: dict[str, Tensor], optional: set[str]) -> None:
    """Put the tensors of a folder into an injected model, every one of them in its place.

    Raises:
        RequestError: for a tensor that is missing, unexpected, or of another shape; it is named.
    """
    wanted = adapter_state(model)
    missing = [name for name in wanted if name not in given and name not in optional]
    unexpected = [name for name in given if name not in wanted]
    if missing or unexpected:
        raise RequestError(
            f"the adapter's tensors are not this model's: missing {_named(missing)}; "
            f"unexpected {_named(unexpected)}"
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)} where {tuple(wanted[name].shape)} is wanted"
            raise RequestError(f"the adapter's {name} is of shape {shapes}")
        wanted[name].copy_(tensor)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more
