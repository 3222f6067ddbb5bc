"""Support tickets sorted by what the customer wants: from a CSV to predictions for new texts.

    python examples/tickets.py            with minilm; 2.6 minutes of one core's time

Writes tickets.csv and later.csv from our own templates. They are synthetic, so a score says nothing
about real tickets; later.csv has other wordings than tickets.csv, as next month's tickets have.
Compares three methods with three seeds each, then predicts new texts by the recommended adapter.
With files of your own, leave `write` out and name your columns.
"""

import csv
import itertools
from pathlib import Path

import peftlab

TICKETS = {
    "refund": ["I want my money back for the {}", "the {} is broken, pay me back", "refund the {}"],
    "delivery": ["where is my {}", "the {} was due last week", "when does the {} come"],
    "invoice": ["the bill for the {} is wrong", "send me a receipt of the {}", "the {} invoice"],
    "cancel": ["I don't need the {} any more", "stop the {} order", "call off my order of the {}"],
}
LATER = {
    "refund": ["give me back what I paid for the {}", "a reimbursement for the {}, please"],
    "delivery": ["nobody has brought the {} yet", "I am still waiting for the {}"],
    "invoice": ["my accountant asks for the document of the {}", "wrong tax number, order: the {}"],
    "cancel": ["I have changed my mind about the {}", "withdraw what I ordered, the {}"],
}
THINGS = ["lamp", "kettle", "desk", "red chair", "phone case", "winter coat", "table", "shelf"]
OPENINGS = ["", "hello, ", "good morning, ", "I write for the third time: "]


def write(path: Path, intents: dict[str, list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for intent, wordings in intents.items():
            for opening, wording, thing in itertools.product(OPENINGS, wordings, THINGS):
                writer.writerow([opening + wording.format(thing), intent])


def main(model: str = "minilm", seeds: tuple[int, ...] = (0, 1, 2), epochs: int = 5) -> list[str]:
    write(Path("tickets.csv"), TICKETS)
    write(Path("later.csv"), LATER)
    data = {"path": "tickets.csv", "text": "text", "label": "label", "dev": "later.csv"}
    methods, out = ["lora", "bitfit", "head"], Path("runs/tickets")
    peftlab.compare(data=data, model=model, methods=methods, seeds=seeds, epochs=epochs, out=out)
    chosen = peftlab.verdicts(out).recommendation
    on_task = chosen.tasks[0]  # three seeds leave much open
    print(f"take {chosen.row}: {on_task.best} is at most {on_task.worse_at_most:.2f} better")
    exported = peftlab.export(out, "best")
    print(f"seed {exported.record.seed}: accuracy {exported.reached:.3f} on later.csv")
    texts = ["my kettle leaks and I'd like my money back", "I found a better one, stop the order"]
    return list(peftlab.predict(*peftlab.load("best"), texts))


if __name__ == "__main__":
    print(main())
