"""peftlab predict, merge, push, export: the commands that use a trained adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli import options
from peftlab.cli.options import Option, Text
from peftlab.naming import counted, title
from peftlab.settings import Training

Adapter = Annotated[Path, typer.Argument(help="A folder with an adapter, ours or HF PEFT's.")]
Base = Annotated[Text, Option(help="Where the base lies now, if not where it lay in training.")]


def predict(
    adapter: Adapter,
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSONL or Parquet.")],
    out: Annotated[Path, Option(help="The file to write, in the format that its suffix says.")],
    text: Annotated[Text, Option(help=f"{options.COLUMNS} Default: training's.")] = None,
    base: Base = None,
    device: Annotated[str, Option(help=Training.model_fields["device"].description)] = "auto",
    fast: options.Fast = None,
    quiet: options.Quiet = False,
) -> None:
    """Answer every row of a file with a trained adapter.

    Its columns are written again, with a prediction, and a score for each class.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, quiet=quiet)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("loading", total=None)

        def advance(n: int, total: int) -> None:
            progress.update(bar, description="rows", total=total, advance=n)

        from peftlab.api.inference import predict_file

        columns = options.columns_of(text)
        replaced = " (in place of what was there)" if out.exists() else ""
        predicted = predict_file(
            adapter, file, out, columns, base, device, advance, fast is not False
        )
    if predicted.n_cut:
        note = f"{counted(predicted.n_cut, 'text')} cut at {predicted.max_length} tokens"
        console.print(note, markup=False, highlight=False)
    print(f"{counted(len(predicted.answers), 'row')}: {out.resolve()}{replaced}")


def merge(
    adapter: Adapter,
    out: Annotated[Path, Option(help="A new folder for the model.")],
    base: Base = None,
) -> None:
    """Merge an adapter into its base, as a plain transformers folder.

    It loads with AutoModelForSequenceClassification.from_pretrained, in fp32.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading and merging"):
        from peftlab.api.export import merge_folder

        merged = merge_folder(adapter, out, base)
    held = "the base in four bits" if merged.quantised else "the base in fp32"
    print(
        f"logits move by at most {merged.moved:.2g} against the adapter on {held} (random tokens)"
    )
    print(f"model: {out.resolve()}")


def push(
    adapter: Annotated[Path, typer.Argument(help="A folder with an adapter of peftlab's.")],
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the hub, made if it is not there.")],
    base: Annotated[
        Text, Option(help="Its base's name on the hub, where that lies in a folder here.")
    ] = None,
    licence: Annotated[
        Text, Option(help="The adapter's, as the hub spells it, such as apache-2.0.")
    ] = None,
    private: Annotated[
        bool, Option("--private", help="Make the repository a private one, where it is new.")
    ] = False,
    to: Annotated[
        Path | None, Option(help="Write it to this folder instead, and send nothing.")
    ] = None,
) -> None:
    """Send an adapter to the hub, with a card.

    The card has numbers, settings, licences, and how to load it. No record, no predictions and no
    path of this machine go with it.
    """
    from rich.console import Console

    with Console(stderr=True).status("writing it" if to else "sending it"):
        from peftlab.api.push import push as send

        place = send(adapter, name, base=base, licence=licence, private=private, to=to)
    print(f"adapter: {place}")


def export(
    out: Annotated[Path, typer.Argument(help="The output folder of a comparison.")],
    to: Annotated[Path, Option(help="Folder for the adapter.")],
    task: Annotated[Text, Option(help="Which task's, if there are several.")] = None,
    method: Annotated[Text, Option(help="The row to take; default: the winner.")] = None,
    base: Base = None,
) -> None:
    """Copy the winner's adapter out of a comparison.

    It is copied only if it answers dev as it did in training. The winner is the recommended row:
    the cheapest that is not behind the best one. Of its seeds the best adapter is taken.
    """
    from rich.console import Console

    with Console(stderr=True).status("evaluating the adapter again"):
        from peftlab.api.export import export as export_adapter

        record, reached, rate_from_dev = export_adapter(out, to, task, method, base)
    assert record.score is not None
    row = title(record.task.name, record.method.label, record.seed)
    metric = record.task.main_metric
    recorded = record.score[metric]
    rounding = "" if reached == recorded else "; its outputs are the same but for rounding"
    print(f"{row}: {metric} {reached:.4f} again, {recorded:.4f} in its record{rounding}")
    if rate_from_dev:
        from peftlab.report.advice import RATE_FROM_DEV

        print(RATE_FROM_DEV)
    print(f"adapter: {to.resolve()}")
