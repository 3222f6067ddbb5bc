"""Data sets of the Hugging Face hub: their Parquet files, read at a commit, never their code."""

from peftlab.tasks.hub.data_set import is_on_hub, load
from peftlab.tasks.hub.files import cached, fetch, licence

__all__ = ["cached", "fetch", "is_on_hub", "licence", "load"]
