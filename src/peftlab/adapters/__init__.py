"""The life of a trained adapter: saved to a folder, loaded from one, merged into its base.

save(model, "adapter/")            adapter_model.safetensors, peftlab.json, the tokenizer; and
                                   adapter_config.json, HF PEFT's, where PEFT has the method
load("adapter/")                   (model, tokenizer), from such a folder or one that PEFT wrote
merge(model), unmerge(model)       adapters replaced by plain layers, and back
"""

from peftlab.adapters.card import base_of, label_names, read_card
from peftlab.adapters.folder import check_adapter, load, load_in, save
from peftlab.adapters.merge import is_merged, merge, plain_folder, unmerge
from peftlab.adapters.savable import check_ids, check_savable
from peftlab.models import TaskCard

__all__ = [
    "TaskCard",
    "base_of",
    "check_adapter",
    "check_ids",
    "check_savable",
    "is_merged",
    "label_names",
    "load",
    "load_in",
    "merge",
    "plain_folder",
    "read_card",
    "save",
    "unmerge",
]
