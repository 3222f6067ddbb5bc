"""push: an adapter as the hub has them, with a card: what it is, how good, how to use it.

Nothing leaves that is not needed: no record, no predictions, no path of this machine.
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
BITS = {"nf4": "four bits (nf4)", "int7": "seven bits (int7)", "int8": "eight bits (int8)"}
MARKS = ", trained with peftlab by `"  # a card as it is written here


class Leaving(NamedTuple):
    """An adapter that is about to leave.

    Attributes:
        folder: where it lies.
        name: what it will be called.
        card: its own.
        record: of its training; None where the folder has none.
        base: the name that its base has on the hub, as the card has it.
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
        name: OWNER/NAME on the hub, made if it is not there.
        base: the name of its base on the hub, where that lies in a folder of this machine.
        licence: the adapter's, as the hub spells it, such as apache-2.0; none if not given.
        private: whether only you shall see it, where it is made.
        to: write it to this folder instead, and send nothing.

    Returns:
        The address that it has now, or the folder.

    Raises:
        RequestError: if there is no such adapter, its base has no name on the hub, or the hub
            refuses it or can't be reached.
    """
    expect_path("folder", folder)
    expect("base", base, (str, NoneType), "a name on the hub")
    _check_name(name, owned=True)
    if base is not None:
        _check_name(base)
    folder = expanded(folder)
    leaving = _leaving(folder, name, base, licence)
    if to is not None:
        expect_path("to", to)
        to = expanded(to)
        if to.resolve() == folder.resolve():
            raise RequestError(f"--to {to} is the adapter's own folder; give another one")
        card = [README] if _is_ours(to / README) else []
        replace_folder(to, lambda place: _write(leaving, place), beside=card)
        return str(to.resolve())
    if why := hub_problem():
        raise RequestError(f"nothing was sent: {why}; --to DIR writes it to a folder instead")
    with tempfile.TemporaryDirectory(prefix="peftlab-") as place:
        _write(leaving, Path(place))
        return _send(Path(place), name, private)


def _is_ours(readme: Path) -> bool:
    """Whether it is a card that was written here: somebody's own README stays."""
    try:
        return MARKS in readme.read_text(encoding="utf-8")
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


def _leaving(folder: Path, name: str, base: str | None, licence: str | None) -> Leaving:
    check_adapter(folder)
    card = read_card(folder)
    if card is None:
        raise RequestError(
            f"{folder} has no {CARD}: HF PEFT wrote it, and its own push_to_hub sends it"
        )
    base = base or _base_on_hub(card)
    _check_name(base)  # a card's own, too: it comes to stand in code
    return Leaving(folder, name, _on(card, base), _record(folder), base, licence)


def _record(folder: Path) -> Record | None:
    path = folder / CELL_FILES["records"]
    try:
        return Record.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValidationError as error:
        raise RequestError(f"{path} can't be read: {one_line(error)}") from None


def _base_on_hub(card: Card) -> str:
    if card.base.name in PACKAGED:
        return PACKAGED[card.base.name].hub
    if card.base.folder is None:
        return card.base.name
    raise RequestError(
        f"its base lies in {card.base.folder}, where nobody else finds it; send the base to the "
        "hub and name it with --base OWNER/NAME"
    )


def _on(card: Card, base: str) -> Card:
    """The card as it holds on any machine, of a base that is found by its name."""
    if card.base.folder is None and base in (card.base.name, _base_on_hub(card)):
        return card
    update = {"name": base, "folder": None, "revision": None, "sha256": None}
    return card.model_copy(update={"base": card.base.model_copy(update=update)})


def _write(leaving: Leaving, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name in PUSHED_FILES:
        if (leaving.folder / name).is_file():
            shutil.copyfile(leaving.folder / name, place / name)
    if (place / PEFT_CONFIG).is_file():
        config = read_config(leaving.folder, needs_base=False)
        base = {"base_model_name_or_path": leaving.base, "revision": leaving.card.base.revision}
        write_json(place / PEFT_CONFIG, config | base)
    write_json(place / CARD, leaving.card.model_dump(mode="json"))
    (place / README).write_text(_readme(leaving), encoding="utf-8")


def _readme(leaving: Leaving) -> str:
    """The model card: what the hub reads, and what a person does."""
    from huggingface_hub import EvalResult, ModelCardData

    method, record = method_of(leaving.card), leaving.record
    in_peft = (leaving.folder / PEFT_CONFIG).is_file()
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
        base_model=leaving.base,
        library_name="peft" if in_peft else "peftlab",
        license=leaving.licence,
        pipeline_tag="text-classification",
        tags=["peftlab", method.name],
        model_name=leaving.name,
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {leaving.name}\n",
        f"An adapter of `{leaving.base}`{MARKS}{method.name}`: "
        f"{method.summary} ({method.paper}).\n",
        *(_numbers(record) if record else []),
        _use(leaving, in_peft),
        _licences(leaving),
    ]
    return "\n".join(parts)


def _numbers(record: Record) -> list[str]:
    task, metric = record.task, record.task.main_metric
    judged = "dev examples"
    if is_judged_on_train(record):
        judged = "examples of train that it was not trained on"
    scores = ", ".join(f"{_code(name)} {value:.4f}" for name, value in (record.score or {}).items())
    lines = [
        "## How good it is\n",
        f"On {task.n_dev:,} {judged} of {_code(task.name)} after the last epoch, one seed "
        f"({record.seed}): {scores}. Trained on {task.n_train:,} examples. Where several "
        "seeds or rows were trained, this one was taken for its score on these same examples, "
        "which makes that a little better than new data would.\n",
    ]
    constant = constant_of(task)
    if metric in constant:
        lines.append(f"The constant answer has {metric} {constant[metric]:.4f}.\n")
    lines += [f"Warning: {_code(warning)}\n" for warning in record.warnings]
    settings = _listed({**record.method.settings, **identity_settings(record.training)})
    counts = record.n_trainable
    trained = f"{counts.adapter:,} parameters and {counts.head:,} of the head" if counts else "–"
    lines += [
        "## How it was trained\n",
        f"{trained}; base in {_code(str(record.precision))}.\n",
        settings,
    ]
    return lines


def _code(text: str) -> str:
    """Text from outside as code, in which nothing is markup."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _listed(values: dict[str, Any]) -> str:
    # a cell of a table ends at a |, in code too
    told = {name: _code(json.dumps(value)).replace("|", r"\|") for name, value in values.items()}
    rows = [f"| `{name}` | {value} |" for name, value in told.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows, ""])


def _use(leaving: Leaving, in_peft: bool) -> str:
    n_labels, revision = leaving.card.num_labels, leaving.card.base.revision
    at = f", revision={json.dumps(revision)}" if revision else ""
    peft = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{leaving.name}")\n'
        "base = AutoModelForSequenceClassification.from_pretrained(\n"
        f'    "{leaving.base}", num_labels={n_labels}, ignore_mismatched_sizes=True{at}\n)\n'
        "base.config.pad_token_id = tokenizer.pad_token_id\n"
        f'model = PeftModel.from_pretrained(base, "{leaving.name}").eval()\n'
    )
    ours = (
        "import peftlab\nfrom huggingface_hub import snapshot_download\n\n"
        f'model, tokenizer = peftlab.load(snapshot_download("{leaving.name}"))\n'
    )
    labels = ", ".join(f"{i}: {_code(name)}" for i, name in enumerate(leaving.card.labels))
    lines = ["## How to use it\n"]
    if in_peft:
        lines.append(f"With HF PEFT:\n\n```python\n{peft}```\n")
        if bits := BITS.get(leaving.card.precision):
            lines.append(
                f"That is on an unquantised base. The scores above are of one in {bits}, on which "
                "peftlab loads it: some answers differ.\n"
            )
    if not type(method_of(leaving.card)).__module__.startswith("peftlab."):
        lines.append("Its method is its author's own, which peftlab must be given beside it.\n")
    lines.append(f"With peftlab:\n\n```python\n{ours}```\n")
    lines.append(f"Outputs: {labels}.\n" if n_labels > 1 else "One output: a number.\n")
    return "\n".join(lines)


def _licences(leaving: Leaving) -> str:
    packaged = PACKAGED.get(leaving.card.base.name)
    base = packaged.licence if packaged else "as its own card says"
    data = leaving.record and leaving.record.task.licence
    stated = [_code(one) if one else "not stated" for one in (data, leaving.licence)]
    return "## Licences\n\nBase: {}. Data: {}. Adapter: {}.\n".format(base, *stated)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # see `describe_error`
        raise RequestError(
            f"{name} could not be sent: {describe_error(error)}; log in with `hf auth login`, and "
            "see that the token may write there"
        ) from error


def _send(place: Path, name: str, private: bool) -> str:
    from huggingface_hub import HfApi

    with _refusals(name):
        api = HfApi()
        # without --private as its owner's settings have it: an organisation's may be private
        api.create_repo(name, private=private or None, exist_ok=True)
        sent = api.upload_folder(
            repo_id=name,
            folder_path=place,
            commit_message="Adapter, sent by peftlab",
            delete_patterns=sorted(PUSHED_FILES),  # what an earlier one left and this one has not
        )
    return str(sent.repo_url)
