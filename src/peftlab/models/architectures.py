"""The table of transformers' architectures: adding one is adding a row and a test.

An architecture without a row works too: its layers are found by their common names (targets.py),
and unless a row names its layers a model is tried before it is trained (tokenizer.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, Literal

from torch import nn

from peftlab.errors import RequestError
from peftlab.layers import PreTrainedModel, Wrapper
from peftlab.layers.precision import hooks_of

# modules of models that see and hear too; a text runs through none of them
NOT_OF_TEXT = r"(.*\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector)(\..*)?"


@dataclass(frozen=True)
class Layers:
    r"""The names of the linear layers in the blocks of one architecture, as patterns.

    Attributes:
        block: the name of a block, below the backbone; all other patterns are below the block.
        query, key, value, attention_output, ffn_in, ffn_out: the layers that these words mean.
        attention_end, ffn_end: the last modules before the two residual adds: the dropout where
            there is one, else the projection.
        attention_norm: the norm behind the first of these adds, in a post-norm encoder of which
            the last block may be cut to the classifier's position (engine/packing.py).
        attention_sum: the module, if there is one, that gets attention's output and the block's
            input, and ends with that norm.
        fused: the layers that hold more than one projection, each with a note for the user.

    >>> TABLE["distilbert"].layers.pattern("query")
    'transformer\\.layer\\.\\d+\\.attention\\.q_lin'
    """

    block: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_out: str
    attention_end: str
    ffn_end: str
    attention_norm: str | None = None
    attention_sum: str | None = None
    fused: tuple[tuple[str, str], ...] = ()

    def pattern(self, word: str) -> str:
        """The pattern, below the backbone, of the layers that `word` means."""
        return rf"{self.block}\.{getattr(self, word.replace('-', '_'))}"


@dataclass(frozen=True)
class Architecture:
    """One row of the table; an architecture without a row is taken to have the defaults.

    Attributes:
        layers: the layers of a block, if they are known.
        classifier_reads: the one token whose last hidden state the head reads, if it is known.
        counts_from_padding: whether positions count from the config's padding token, so that this
            token is a part of the base.
        unread: patterns below the backbone, {last} for the number of the last block, of modules
            on which no answer depends, so that none of their weights can have a gradient.
        unsuited: why it can't be trained in batches, which are padded on the right.
    """

    layers: Layers | None = None
    classifier_reads: Literal["first", "last"] | None = None
    counts_from_padding: bool = False
    unread: tuple[str, ...] = ()
    unsuited: str = ""

    @property
    def ends_at_first(self) -> bool:
        """Whether the last block is only needed for the first token, and can be cut to it."""
        can_be_cut = self.layers is not None and self.layers.attention_norm is not None
        return self.classifier_reads == "first" and can_be_cut


_BERT = Layers(
    block=r"encoder\.layer\.\d+",
    query=r"attention\.self\.query",
    key=r"attention\.self\.key",
    value=r"attention\.self\.value",
    attention_output=r"attention\.output\.dense",
    ffn_in=r"intermediate\.dense",
    ffn_out=r"output\.dense",
    attention_end=r"attention\.output\.dropout",
    ffn_end=r"output\.dropout",
    attention_norm=r"attention\.output\.LayerNorm",
    attention_sum=r"attention\.output",
)
_DEBERTA = replace(
    _BERT,
    query=r"attention\.self\.query_proj",
    key=r"attention\.self\.key_proj",
    value=r"attention\.self\.value_proj",
    attention_norm=None,
    attention_sum=None,
)
_MPNET = replace(
    _BERT,
    query=r"attention\.attn\.q",
    key=r"attention\.attn\.k",
    value=r"attention\.attn\.v",
    attention_output=r"attention\.attn\.o",
    attention_end=r"attention\.dropout",
    attention_norm=r"attention\.LayerNorm",
    attention_sum=None,
)
_DISTILBERT = Layers(
    block=r"transformer\.layer\.\d+",
    query=r"attention\.q_lin",
    key=r"attention\.k_lin",
    value=r"attention\.v_lin",
    attention_output=r"attention\.out_lin",
    ffn_in=r"ffn\.lin1",
    ffn_out=r"ffn\.lin2",
    attention_end=r"attention\.out_lin",
    ffn_end=r"ffn\.dropout",
    attention_norm=r"sa_layer_norm",
)
_ALBERT = Layers(  # all its blocks are one module, so the last can't be cut by itself
    block=r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+",
    query=r"attention\.query",
    key=r"attention\.key",
    value=r"attention\.value",
    attention_output=r"attention\.dense",
    ffn_in=r"ffn",
    ffn_out=r"ffn_output",
    attention_end=r"attention\.output_dropout",
    ffn_end=r"ffn_output",
)
_MODERNBERT = Layers(
    block=r"layers\.\d+",
    query=r"attn\.Wqkv",
    key=r"attn\.Wqkv",
    value=r"attn\.Wqkv",
    attention_output=r"attn\.Wo",
    ffn_in=r"mlp\.Wi",
    ffn_out=r"mlp\.Wo",
    attention_end=r"attn\.out_drop",
    ffn_end=r"mlp\.Wo",
    fused=(
        ("attn.Wqkv", "query, key and value are one fused layer, attn.Wqkv, adapted whole"),
        ("mlp.Wi", "the FFN's input and its gate are one fused layer, mlp.Wi, adapted whole"),
    ),
)
_GPT2 = Layers(
    block=r"h\.\d+",
    query=r"attn\.c_attn",
    key=r"attn\.c_attn",
    value=r"attn\.c_attn",
    attention_output=r"attn\.c_proj",
    ffn_in=r"mlp\.c_fc",
    ffn_out=r"mlp\.c_proj",
    attention_end=r"attn\.resid_dropout",
    ffn_end=r"mlp\.dropout",
    fused=(
        ("attn.c_attn", "query, key and value are one fused layer, attn.c_attn, adapted whole"),
    ),
)
_LLAMA = Layers(
    block=r"layers\.\d+",
    query=r"self_attn\.q_proj",
    key=r"self_attn\.k_proj",
    value=r"self_attn\.v_proj",
    attention_output=r"self_attn\.o_proj",
    ffn_in=r"mlp\.(gate|up)_proj",
    ffn_out=r"mlp\.down_proj",
    attention_end=r"self_attn\.o_proj",
    ffn_end=r"mlp\.down_proj",
)
_APPROXIMATE = "its attention is approximated over all positions, padding among them"

TABLE: dict[str, Architecture] = {
    "bert": Architecture(_BERT, "first"),
    "roberta": Architecture(_BERT, "first", counts_from_padding=True),
    "xlm-roberta": Architecture(_BERT, "first", counts_from_padding=True),
    "electra": Architecture(_BERT, "first"),
    "deberta-v2": Architecture(_DEBERTA, "first"),  # also v3, of which transformers has no class
    "mpnet": Architecture(_MPNET, "first", counts_from_padding=True),
    "distilbert": Architecture(_DISTILBERT, "first"),
    "albert": Architecture(_ALBERT, "first"),
    "modernbert": Architecture(_MODERNBERT),  # its config says: the first token, or the mean
    "gpt2": Architecture(_GPT2, "last"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), Architecture(_LLAMA, "last")),
    **dict.fromkeys(
        (
            *("camembert", "data2vec-text", "ibert", "layoutlmv3", "lilt", "luke", "markuplm"),
            *("roberta-prelayernorm", "xlm-roberta-xl", "xmod"),
        ),
        Architecture(counts_from_padding=True),
    ),
    "canine": Architecture(unsuited="its convolutions take padding for characters"),
    "convbert": Architecture(unsuited="its convolutions take padding for words"),
    "esm": Architecture(counts_from_padding=True, unread=(r"contact_head\..*",)),
    # the first token attends to all by projections of its own, query_global and its kin
    "longformer": Architecture(
        counts_from_padding=True,
        unread=(r"encoder\.layer\.{last}\.attention\.self\.(query|key|value)",),
    ),
    "fnet": Architecture(unsuited="it has no attention that could leave padding out"),
    "mobilebert": Architecture(
        unsuited="it joins each token with its neighbours, padding among them"
    ),
    "nystromformer": Architecture(unsuited=_APPROXIMATE),
    "xlnet": Architecture(
        unsuited="it must be padded from the left, and padding is on the right here"
    ),
    "yoso": Architecture(unsuited=_APPROXIMATE),
}
ARCHITECTURES = [name for name, row in TABLE.items() if row.layers]  # whose layers are known


def architecture_of(model: Any) -> Architecture:
    """The row of the table for a model, a config, or a `Source`; the defaults if it has none."""
    return TABLE.get(getattr(model, "config", model).model_type, Architecture())


def unread_modules(model: PreTrainedModel) -> list[str]:
    """The full names of the backbone's modules that are known to affect no answer.

    See `Architecture.unread`; those that no text runs through are among them.
    """
    last = getattr(model.config, "num_hidden_layers", 0) - 1
    prefix = re.escape(model.base_model_prefix)
    patterns = [
        rf"{prefix}\.{pattern.replace('{last}', str(last))}"
        for pattern in architecture_of(model).unread
    ]
    return [
        name
        for name, _ in model.named_modules()
        if any(re.fullmatch(pattern, name) for pattern in (*patterns, NOT_OF_TEXT))
    ]


KNOWN_PACKAGES = {"peftlab", "torch", "transformers"}  # all other code is a caller's own


def is_as_written(model: nn.Module) -> bool:
    """Whether `model` computes as its architecture's row says: nothing in it is a caller's own.

    A class of the caller's that has methods, a `forward` put over a module's, or a hook may read
    other tokens than the architecture does. A method's module around a layer (`Wrapper`) does not.
    """
    return all(_is_module_as_written(module) for module in model.modules())


def _is_module_as_written(module: nn.Module) -> bool:
    if not all(_packages(hook) <= KNOWN_PACKAGES - {"torch"} for hook in hooks_of(module)):
        return False
    if isinstance(module, Wrapper):
        return True
    forward = getattr(type(module), "forward", None)  # a scripted module's class has none
    if not _packages(forward) <= KNOWN_PACKAGES or _has_foreign_methods(type(module)):
        return False
    return "forward" not in vars(module)


def _has_foreign_methods(cls: type) -> bool:
    """Whether `cls` or a base is of another package and has methods besides `__init__`."""
    foreign = [vars(base) for base in cls.__mro__ if not _packages(base) <= KNOWN_PACKAGES]
    return any(
        isinstance(value, FunctionType) and name != "__init__"
        for attributes in foreign
        for name, value in attributes.items()
    )


def _packages(code: Any) -> set[str]:
    """The packages that `code` claims to be from and was written in; a decorator's wrapper has two.

    functools.wraps copies the name of what it wraps, and torch's own decorators wrap a caller's
    code.
    """
    claimed = getattr(code, "__module__", "")
    actual = getattr(code, "__globals__", {}).get("__name__", claimed)
    return {str(module).partition(".")[0] for module in (claimed, actual)}


def head_names(model: PreTrainedModel) -> list[str]:
    """The modules of the head: all modules outside the backbone, and a pooler inside it.

    Only those with parameters are listed; tests name them for each architecture.
    """
    prefix = model.base_model_prefix
    backbone = model.get_submodule(prefix)
    names = [name for name, _ in model.named_children() if name != prefix]
    if getattr(backbone, "pooler", None) is not None:
        names.insert(0, f"{prefix}.pooler")
    return [name for name in names if any(True for _ in model.get_submodule(name).parameters())]


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The head's parameters by full name, in the model's order."""
    prefixes = tuple(f"{name}." for name in head_names(model))
    return {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}


def backbone_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules inside the backbone by full name, without those of the head."""
    prefix = f"{model.base_model_prefix}."
    head_prefixes = tuple(f"{name}." for name in head_names(model))
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and not f"{name}.".startswith(head_prefixes)  # ALBERT's pooler is itself a linear layer
    }


def check_checkpointing(model: PreTrainedModel) -> None:
    """Raise `RequestError` if transformers has no activation checkpointing for this model."""
    if not model.supports_gradient_checkpointing:
        raise RequestError(
            f"{type(model).__name__} has no activation checkpointing in transformers; leave "
            "--checkpointing out, and take --accumulation or a smaller --batch-size"
        )
