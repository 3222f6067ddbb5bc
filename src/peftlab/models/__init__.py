"""Models: load (model, tokenizer) by name or folder; find a model's layers by words for them.

load_model("minilm")           a pretrained encoder from a Python package (packaged.py)
load_model("path/to/folder")   config.json, *.safetensors and a tokenizer
load_model("roberta-base")     any hub name, for sequence classification
"""

from peftlab.models.architectures import (
    ARCHITECTURES,
    architecture_of,
    backbone_modules,
    check_checkpointing,
    head_names,
    head_parameters,
    is_as_written,
    unread_modules,
)
from peftlab.models.find import Source, find, looks_like_folder, quiet
from peftlab.models.load import (
    StoredBase,
    check_weights,
    empty_model,
    load_model,
    load_source,
    precision_for,
    sized_model,
    stored_dtype,
    stored_names,
)
from peftlab.models.packaged import PACKAGED
from peftlab.models.state import (
    TaskCard,
    check_compiled,
    check_model,
    check_tokenizer,
    name_labels,
    precision_of,
    state_of,
)
from peftlab.models.targets import (
    LOGICAL,
    Targets,
    find_blocks,
    find_targets,
    kind_of,
    linear_names,
    norms,
)
from peftlab.models.tokenizer import (
    agree_on_padding,
    check_batches,
    load_tokenizer,
    longest_input,
    save_tokenizer,
    token_limit,
)
from peftlab.models.unit import Unit, last_layer, standard_unit, unit_of

__all__ = [
    "ARCHITECTURES",
    "LOGICAL",
    "PACKAGED",
    "Source",
    "StoredBase",
    "Targets",
    "TaskCard",
    "Unit",
    "agree_on_padding",
    "architecture_of",
    "backbone_modules",
    "check_batches",
    "check_checkpointing",
    "check_compiled",
    "check_model",
    "check_tokenizer",
    "check_weights",
    "empty_model",
    "find",
    "find_blocks",
    "find_targets",
    "head_names",
    "head_parameters",
    "is_as_written",
    "kind_of",
    "last_layer",
    "linear_names",
    "load_model",
    "load_source",
    "load_tokenizer",
    "longest_input",
    "looks_like_folder",
    "name_labels",
    "norms",
    "precision_for",
    "precision_of",
    "quiet",
    "save_tokenizer",
    "sized_model",
    "standard_unit",
    "state_of",
    "stored_dtype",
    "stored_names",
    "token_limit",
    "unit_of",
    "unread_modules",
]
