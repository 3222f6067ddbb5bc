"""The settings of a training, each declared once, as a field here.

Training    as requested: a None is decided later, by the method, the task or the model
Resolved    as run, and stored in a record: no None is left

All else follows from the field: the command line's option and its help, a suite file's key, the
check, the value that the loop reads, and a record's `training`. Every room may import this file; it
imports `errors` and `naming` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from peftlab.errors import RequestError, explain, plain
from peftlab.naming import listed

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
Rate = Annotated[float, Field(gt=0)]
PrecisionName = Literal["auto", "fp32", "bf16", "int8", "int7", "nf4"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]


PRECISION_WORDS = listed(get_args(PrecisionName), "or")
DEVICE_WORDS = listed(get_args(DeviceName), "or")


def later(default: Any, **arguments: Any) -> Any:
    """A pydantic `Field` for a setting that was added when records existed already.

    At its default it is no part of a cell's identity, so that cells done before it stay done.
    """
    return Field(default, json_schema_extra={"later": True}, **arguments)


class _Settings(BaseModel):
    """The settings of which nothing is decided later: the same as requested and as run."""

    model_config = STRICT

    batch_size: int = Field(32, ge=1, le=65_536, description="Examples a step; default 32.")
    batches: Literal["random", "grouped"] = Field(
        "random",
        description="random, or grouped by length: less padding, but labels of a batch correlate.",
    )
    weight_decay: float = Field(
        0.0, ge=0, lt=1, description="AdamW's weight decay, of matrices alone; default 0."
    )
    warmup: float = Field(
        0.06, ge=0, lt=1, description="Share of the steps in which the rate rises; default 0.06."
    )
    clip: float = Field(1.0, gt=0, description="Largest gradient norm; default 1.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="none, or balanced: a rare class counts as much as a common one."
    )
    accumulation: int = Field(
        1,
        ge=1,
        le=65_536,
        description="Least number of parts to split a batch into; gradients add up; default 1.",
    )
    parts: bool = Field(
        True, description="On a CPU, split batches of many tokens, or take all of them whole."
    )
    checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass, to save memory."
    )
    fast: bool = Field(
        True,
        description="The fast engine, or the model's own code: equal but for rounding and dropout.",
    )
    graphs: bool = later(
        False, description="Capture passes as CUDA graphs; has been run on no CUDA device yet."
    )


class Training(_Settings):
    """The settings as requested, for every cell."""

    lr: Rate | None = Field(None, description="Learning rate; default: the method's.")
    head_lr: Rate | None = Field(
        None, description="Learning rate of the head; default: the method's."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Passes over train; default: what makes 300 updates, 3 to 30 (2 in the demo).",
    )
    max_length: int | None = Field(
        None, ge=4, description="Longest input in tokens; default 128, RTE 256."
    )
    precision: PrecisionName = Field("auto", description=f"{PRECISION_WORDS}.")
    device: DeviceName = Field("auto", description=f"{DEVICE_WORDS}.")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads; default: torch's choice, within a container's quota.",
    )

    @classmethod
    def of(cls, values: Mapping[str, Any], arguments: Iterable[str] = ()) -> Self:
        """Check the given values; the other settings stay at their defaults, and count as unset.

        `arguments` are the caller's own ones, which are suggested too for an unknown name.

        Raises:
            RequestError: naming the field, the value given and what is allowed.
        """
        try:
            return cls.model_validate({name: plain(value) for name, value in values.items()})
        except ValidationError as error:
            raise explain(error, "training", [*Training.model_fields, *arguments]) from None

    @property
    def given(self) -> dict[str, Any]:
        """Only the settings that were given."""
        return self.model_dump(exclude_unset=True)

    def resolved(self, **decided: Any) -> Resolved:
        """The settings as run: `decided` has the fields that `Training` leaves open.

        Raises:
            RequestError: if CUDA graphs are asked for and can't be captured.
        """
        shared = {name: getattr(self, name) for name in _Settings.model_fields}
        resolved = Resolved(**shared, **decided)
        resolved.check_graphs()
        return resolved


class Resolved(_Settings):
    """The settings as run, for one cell."""

    lr: float
    head_lr: float
    epochs: int
    max_length: int
    device: str
    threads: int

    @property
    def in_engine(self) -> bool:
        """Whether all parts of `peftlab.engine` for a CPU are used."""
        return self.fast and self.device == "cpu" and not self.checkpointing

    def check_graphs(self) -> None:
        """Raise `RequestError` if CUDA graphs are asked for and can't be captured."""
        obstacles = {
            f"on {self.device}": self.device != "cuda",
            "with checkpointing": self.checkpointing,  # it rewinds the generator
            "with weights of classes": self.class_weights != "none",  # they come from the host
        }
        for obstacle, is_met in obstacles.items():
            if self.graphs and is_met:
                raise RequestError(f"CUDA graphs can't be captured {obstacle}; leave --graphs out")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that identify a cell: all but those of `later` at their defaults."""
        return identity_settings(self.model_dump(), type(self).model_fields)


def identity_settings(
    values: Mapping[str, Any], fields: Mapping[str, FieldInfo] = Resolved.model_fields
) -> dict[str, Any]:
    """A record's settings by which cells and rows differ.

    Without those of `later` that are at their defaults.
    """
    return {
        name: value
        for name, value in values.items()
        if not (name in fields and _is_later(fields[name]) and value == fields[name].default)
    }


def _is_later(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("later"))
