"""push: send an adapter to the hub, with a card on what it is, how good it is and how to use it.

Nothing is sent that is not needed: no record, no predictions, no path of this machine.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from pydantic import ValidationError

from peftlab.adapters import check_adapter, read_card
from peftlab.adapters.card import Card, method_of, write_json
from peftlab.adapters.peft_layout import read_config
from peftlab.atomic import CARD, CELL_FILES, PEFT_CONFIG, PUSHED_FILES, replace_folder
from peftlab.errors import RequestError, expanded, expect, expect_path, one_line
from peftlab.models import PACKAGED
from peftlab.network import describe_error, hub_problem
from peftlab.records.record import Record
from peftlab.records.rows import constant_of, is_judged_on_train
from peftlab.settings import identity_settings

README = "README.md"
QUANTISED = {"nf4": "four bits (nf4)", "int7": "seven bits (int7)", "int8": "eight bits (int8)"}
SIGNATURE = ", trained with peftlab by `"  # in every model card that is written here


class Parcel(NamedTuple):
    """An adapter that is about to be sent.

    Attributes:
        folder: the adapter's.
        name: OWNER/NAME, of its repository on the hub.
        card: the content of its peftlab.json, with the base as it is found on any machine.
        record: of its training; None if the folder has none.
        base: the name of its base on the hub.
        licence: the adapter's own, as the hub spells it; None for none.
    """

    folder: Path
    name: str
    card: Card
    record: Record | None
    base: str
    licence: str | None


def push(
    folder: str | Path,
    name: str,
    *,
    base: str | None = None,
    licence: str | None = None,
    private: bool = False,
    to: str | Path | None = None,
) -> str:
    """Send an adapter to the hub, or write to a folder what would be sent.

    Args:
        folder: with an adapter of peftlab's, such as `export` and `train` write.
        name: OWNER/NAME on the hub; the repository is made if it is not there.
        base: the base's name on the hub, if the adapter was trained on a folder of this machine.
        licence: the adapter's, as the hub spells it, such as apache-2.0; none if not given.
        private: whether a new repository is private; without it its owner's settings hold.
        to: write it to this folder instead, and send nothing.

    Returns:
        The address of the repository on the hub, or the folder's path.

    Raises:
        RequestError: if there is no such adapter, its base has no name on the hub, or the hub
            refuses it or can't be reached.
    """
    expect_path("folder", folder)
    expect("base", base, (str, NoneType), "a name on the hub")
    expect("private", private, bool, "True or False")
    _check_name(name, owned=True)
    if base is not None:
        _check_name(base)
    folder = expanded(folder)
    parcel = _read_parcel(folder, name, base, licence)
    if to is not None:
        expect_path("to", to)
        to = expanded(to)
        if to.resolve() == folder.resolve():
            raise RequestError(f"--to {to} is the adapter's own folder; give another one")
        replaceable = [README] if _is_ours(to / README) else []
        replace_folder(to, lambda new: _write(parcel, new), beside=replaceable)
        return str(to.resolve())
    if problem := hub_problem():
        raise RequestError(f"nothing was sent: {problem}; --to DIR writes it to a folder instead")
    with tempfile.TemporaryDirectory(prefix="peftlab-") as temporary:
        _write(parcel, Path(temporary))
        return _send(Path(temporary), name, private)


def _is_ours(readme: Path) -> bool:
    """Whether the file is a card that peftlab wrote; a user's own README is not replaced."""
    try:
        return SIGNATURE in readme.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _check_name(name: str, owned: bool = False) -> None:
    expect("name", name, str, "OWNER/NAME")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RequestError(f"a name on the hub is OWNER/NAME, got {name!r}: {error}") from None
    if owned and "/" not in name:
        raise RequestError(f"a name on the hub is OWNER/NAME, got {name!r}: it has no owner")


def _read_parcel(folder: Path, name: str, base: str | None, licence: str | None) -> Parcel:
    check_adapter(folder)
    card = read_card(folder)
    if card is None:
        raise RequestError(
            f"{folder} has no {CARD}: HF PEFT wrote it, and its own push_to_hub sends it"
        )
    base = base or _base_on_hub(card)
    _check_name(base)  # a card's own name too, since the model card has it in code
    return Parcel(folder, name, _with_base(card, base), _read_record(folder), base, licence)


def _read_record(folder: Path) -> Record | None:
    path = folder / CELL_FILES["records"]
    try:
        return Record.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValidationError as error:
        raise RequestError(f"{path} can't be read: {one_line(error)}") from None


def _base_on_hub(card: Card) -> str:
    """The name of the card's base on the hub; RequestError if it lies in a folder."""
    if card.base.name in PACKAGED:
        return PACKAGED[card.base.name].hub
    if card.base.folder is None:
        return card.base.name
    raise RequestError(
        f"its base lies in {card.base.folder}, where nobody else finds it; send the base to the "
        "hub and name it with --base OWNER/NAME"
    )


def _with_base(card: Card, base: str) -> Card:
    """The card with a base that any machine finds by its name on the hub."""
    if card.base.folder is None and base in (card.base.name, _base_on_hub(card)):
        return card
    update = {"name": base, "folder": None, "revision": None, "sha256": None}
    return card.model_copy(update={"base": card.base.model_copy(update=update)})


def _write(parcel: Parcel, folder: Path) -> None:
    """Write to `folder` the files that are sent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PUSHED_FILES:
        if (parcel.folder / name).is_file():
            shutil.copyfile(parcel.folder / name, folder / name)
    if (folder / PEFT_CONFIG).is_file():
        config = read_config(parcel.folder, needs_base=False)
        base = {"base_model_name_or_path": parcel.base, "revision": parcel.card.base.revision}
        write_json(folder / PEFT_CONFIG, config | base)
    write_json(folder / CARD, parcel.card.model_dump(mode="json"))
    (folder / README).write_text(_model_card(parcel), encoding="utf-8")


def _model_card(parcel: Parcel) -> str:
    """The model card: front matter for the hub, then text for people."""
    from huggingface_hub import EvalResult, ModelCardData

    method, record = method_of(parcel.card), parcel.record
    in_peft = (parcel.folder / PEFT_CONFIG).is_file()
    results = []
    if record and record.score:
        results.append(
            EvalResult(
                task_type="text-classification",
                dataset_type=record.task.name,
                dataset_name=record.task.name,
                dataset_split="train" if is_judged_on_train(record) else "dev",
                metric_type=record.task.main_metric,
                metric_value=round(record.score[record.task.main_metric], 4),
            )
        )
    data = ModelCardData(
        base_model=parcel.base,
        library_name="peft" if in_peft else "peftlab",
        license=parcel.licence,
        pipeline_tag="text-classification",
        tags=["peftlab", method.name],
        model_name=parcel.name,
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {parcel.name}\n",
        f"An adapter of `{parcel.base}`{SIGNATURE}{method.name}`: "
        f"{method.summary} ({method.paper}).\n",
        *(_describe_training(record) if record else []),
        _describe_use(parcel, in_peft),
        _licences(parcel),
    ]
    return "\n".join(parts)


def _describe_training(record: Record) -> list[str]:
    """The card's parts on the scores and the settings."""
    task, metric = record.task, record.task.main_metric
    examples = "dev examples"
    if is_judged_on_train(record):
        examples = "examples of train that it was not trained on"
    scores = ", ".join(f"{_code(name)} {value:.4f}" for name, value in (record.score or {}).items())
    parts = [
        "## How good it is\n",
        f"On {task.n_dev:,} {examples} of {_code(task.name)} after the last epoch, one seed "
        f"({record.seed}): {scores}. Trained on {task.n_train:,} examples. Where several "
        "seeds or rows were trained, this one was taken for its score on these same examples, "
        "which makes that a little better than new data would.\n",
    ]
    constant = constant_of(task)
    if metric in constant:
        parts.append(f"The constant answer has {metric} {constant[metric]:.4f}.\n")
    parts += [f"Warning: {_code(warning)}\n" for warning in record.warnings]
    settings = _settings_table({**record.method.settings, **identity_settings(record.training)})
    counts = record.n_trainable
    trained = f"{counts.adapter:,} parameters and {counts.head:,} of the head" if counts else "–"
    parts += [
        "## How it was trained\n",
        f"{trained}; base in {_code(str(record.precision))}.\n",
        settings,
    ]
    return parts


def _code(text: str) -> str:
    """The text as code in one line, in which nothing is markup: it may come from outside."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _settings_table(settings: dict[str, Any]) -> str:
    # a | ends a table's cell, in code too
    cells = {name: _code(json.dumps(v)).replace("|", r"\|") for name, v in settings.items()}
    rows = [f"| `{name}` | {cell} |" for name, cell in cells.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows, ""])


def _describe_use(parcel: Parcel, in_peft: bool) -> str:
    """The card's part on how to load the adapter, with HF PEFT (`in_peft`) and with peftlab."""
    n_labels, revision = parcel.card.num_labels, parcel.card.base.revision
    pin = f", revision={json.dumps(revision)}" if revision else ""
    peft_code = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{parcel.name}")\n'
        "base = AutoModelForSequenceClassification.from_pretrained(\n"
        f'    "{parcel.base}", num_labels={n_labels}, ignore_mismatched_sizes=True{pin}\n)\n'
        "base.config.pad_token_id = tokenizer.pad_token_id\n"
        f'model = PeftModel.from_pretrained(base, "{parcel.name}").eval()\n'
    )
    peftlab_code = (
        "import peftlab\nfrom huggingface_hub import snapshot_download\n\n"
        f'model, tokenizer = peftlab.load(snapshot_download("{parcel.name}"))\n'
    )
    labels = ", ".join(f"{i}: {_code(name)}" for i, name in enumerate(parcel.card.labels))
    parts = ["## How to use it\n"]
    if in_peft:
        parts.append(f"With HF PEFT:\n\n```python\n{peft_code}```\n")
        if bits := QUANTISED.get(parcel.card.precision):
            parts.append(
                f"That is on an unquantised base. The scores above are of one in {bits}, on which "
                "peftlab loads it: some answers differ.\n"
            )
    if not type(method_of(parcel.card)).__module__.startswith("peftlab."):
        parts.append(
            "Its method is its author's own: peftlab knows it after `peftlab.register`, or by "
            "`--plugin` with its file.\n"
        )
    parts.append(f"With peftlab:\n\n```python\n{peftlab_code}```\n")
    parts.append(f"Outputs: {labels}.\n" if n_labels > 1 else "One output: a number.\n")
    return "\n".join(parts)


def _licences(parcel: Parcel) -> str:
    packaged = PACKAGED.get(parcel.card.base.name)
    base = packaged.licence if packaged else "as its own card says"
    licences = (parcel.record and parcel.record.task.licence, parcel.licence)
    data, adapter = [_code(licence) if licence else "not stated" for licence in licences]
    return f"## Licences\n\nBase: {base}. Data: {data}. Adapter: {adapter}.\n"


@contextmanager
def _explained_refusals(name: str) -> Iterator[None]:
    """Raise whatever the hub or its transport raises as a `RequestError` with a remedy."""
    try:
        yield
    except Exception as error:  # see `describe_error`
        raise RequestError(
            f"{name} could not be sent: {describe_error(error)}; log in with `hf auth login`, and "
            "see that the token may write there"
        ) from error


def _send(folder: Path, name: str, private: bool) -> str:
    """Upload the folder in one commit; returns the repository's address."""
    from huggingface_hub import HfApi

    with _explained_refusals(name):
        api = HfApi()
        # without --private the owner's settings hold: an organisation's may make it private
        api.create_repo(name, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Adapter, sent by peftlab",
            delete_patterns=sorted(PUSHED_FILES),  # an earlier adapter's files that this one lacks
        )
    return str(commit.repo_url)
