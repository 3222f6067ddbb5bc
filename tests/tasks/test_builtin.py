"""The built-in synthetic tasks: the same everywhere, train and dev apart, and labels that are true.

The labels are checked by reading the sentences back: a wording is looked up in the word lists and
the answer is worked out from what the texts say, not from how they were made.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from peftlab.tasks.base import BuiltIn, Examples, Task
from peftlab.tasks.builtin import acceptability, entailment, paraphrase, similarity
from peftlab.tasks.builtin.grammar import DEALING, HANDLING, PEOPLE, PLACES, THINGS, Lexicon, plural

MODULES = {
    "acceptability": acceptability,
    "paraphrase": paraphrase,
    "entailment": entailment,
    "similarity": similarity,
}
SHA256 = {
    "acceptability": "5824690ae5f57a48c71db9f9c3dfbf1888ca2f0b409107926e2802b8f4846561",
    "paraphrase": "15a08f16a1d177b115e0e1490be07795fb1faca72d4b51c4acf71031a025a46c",
    "entailment": "3a7f33018cc6fd64b94241bd9f42a4bac8d38e3422220741e367ee28a014957c",
    "similarity": "5f4636ae2918a6dc065042bd59a66f89951fa602f8370b42e349b54ff393190f",
}
LEXICONS = {"person": PEOPLE, "act": HANDLING, "deal": DEALING, "thing": THINGS, "place": PLACES}
VAGUE = {"somebody": "person", "someone": "person", "something": "thing"}
DENIAL = re.compile(r"^(nobody|no one) ")


@pytest.fixture(params=list(MODULES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def task(name: str) -> Task:
    return built_in(name).load()


def built_in(name: str) -> BuiltIn:
    return MODULES[name].TASK


def sentences(split: Examples) -> list[str]:
    return [text for texts in split.texts for text in texts]


def templates(found: object) -> list[str]:
    """All template strings in a tuple or a dictionary of tuples."""
    if isinstance(found, str):
        return [found]
    values = found.values() if isinstance(found, dict) else found
    return [text for value in values for text in templates(value)]


# -- what every task keeps ---------------------------------------------------------------------


def test_examples_are_the_known_ones(name: str, task: Task) -> None:
    assert task.sha256() == SHA256[name]


def test_another_process_generates_the_same() -> None:
    code = (
        "from peftlab.tasks.builtin import acceptability, entailment, paraphrase, similarity\n"
        "for module in (acceptability, paraphrase, entailment, similarity):\n"
        "    print(module.TASK.name, module.TASK.load().sha256())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert dict(line.split() for line in run.stdout.splitlines()) == SHA256


def test_it_is_named_and_called_synthetic(name: str, task: Task) -> None:
    assert task.name == name
    assert task.source == "synthetic"
    assert "synthetic" in built_in(name).summary


def test_sizes(task: Task) -> None:
    assert 400 <= len(task.train) <= 1000
    assert 150 <= len(task.dev) <= 500
    assert all(len(split.texts) == len(split.labels) for split in (task.train, task.dev))


def test_no_sentence_is_in_both_splits(task: Task) -> None:
    assert not set(sentences(task.train)) & set(sentences(task.dev))


def test_no_template_is_in_both_splits(name: str) -> None:
    module = MODULES[name]
    assert not set(templates(module.TRAIN_TEMPLATES)) & set(templates(module.DEV_TEMPLATES))


def test_no_example_stands_twice(task: Task) -> None:
    for split in (task.train, task.dev):
        assert len(set(split.texts)) == len(split)


def test_columns_differ_in_a_pair(task: Task) -> None:
    assert all(len(set(texts)) == len(texts) for texts in task.train.texts + task.dev.texts)


def test_sentences_are_short_plain_english(task: Task) -> None:
    for text in sentences(task.train) + sentences(task.dev):
        assert re.fullmatch(r"[A-Z][A-Za-z ]+\.", text), text
        assert "  " not in text
        assert 3 <= len(text.split()) <= 16, text


def test_articles_fit(task: Task) -> None:
    for text in sentences(task.train) + sentences(task.dev):
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text.lower()), text


def test_labels_are_spread(task: Task) -> None:
    for split in (task.train, task.dev):
        counts = Counter(split.labels)
        if task.kind == "classes":
            assert set(counts) == set(range(len(task.labels)))
            assert max(counts.values()) / len(split) <= 0.55
        else:
            assert min(counts) >= 0
            assert max(counts) <= 5
            assert len(counts) >= 8
            assert max(counts.values()) / len(split) <= 0.3


# -- labels, worked out from the texts ---------------------------------------------------------


@pytest.mark.parametrize("lexicon", LEXICONS.values(), ids=list(LEXICONS))
def test_a_wording_has_one_meaning(lexicon: Lexicon) -> None:
    wordings = [word for group in lexicon.values() for concept in group for word in concept]
    assert len(set(wordings)) == len(wordings)


def found(text: str, lexicon: Lexicon) -> list[tuple[str, int]]:
    """The concepts (group, position) that the text mentions, in its order, singular or plural."""
    hits = [
        (match.start(), (group, index))
        for group, concepts in lexicon.items()
        for index, concept in enumerate(concepts)
        for wording in concept
        for match in re.finditer(rf"\b({wording}|{plural(wording)})\b", text)
    ]
    return [concept for _, concept in sorted(hits)]


def read(text: str) -> dict[str, list[tuple[str, int]]]:
    """What the text says, by kind of fact."""
    return {kind: found(text.lower(), lex) for kind, lex in LEXICONS.items()}


def denied(text: str) -> bool:
    return bool(DENIAL.match(text.lower()))


def test_paraphrases_say_the_same() -> None:
    def says(text: str) -> object:
        facts = read(text)
        people = facts["person"]
        passive = re.search(r"the \w+ was ", text.lower())
        roles = people[::-1] if passive else people
        assert len(people) == 2, text
        return roles, facts["deal"], facts["place"], denied(text)

    task = paraphrase.TASK.load()
    for split in (task.train, task.dev):
        for (first, second), label in zip(split.texts, split.labels, strict=True):
            assert (says(first) == says(second)) == label, (first, second)


def words(text: str) -> list[str]:
    return text.lower().strip(".").split()


def points(kind: str, first: str, second: str) -> float:
    """1 for the same concept, 1/2 for a related or a vague one, 0 for another."""
    one, other = read(first)[kind], read(second)[kind]
    vague = [any(VAGUE.get(w) == kind for w in words(text)) for text in (first, second)]
    assert [bool(one), bool(other)] == [not v for v in vague], (first, second)
    if any(vague):
        return 0.5
    return 1.0 if one == other else 0.5 if one[0][0] == other[0][0] else 0.0


def test_similarity_counts_the_shared_facts() -> None:
    task = similarity.TASK.load()
    for split in (task.train, task.dev):
        for (first, second), label in zip(split.texts, split.labels, strict=True):
            shared = sum(points(kind, first, second) for kind in ("person", "act", "thing"))
            share = 0.25 if denied(first) or denied(second) else 1.0
            assert label == pytest.approx(share * 5 * shared / 3, abs=1e-3), (first, second)


def test_entailed_claims_are_in_the_premise() -> None:
    def implied(premise: str, claim: str) -> bool:
        if re.match(r"nobody|we doubt|it is doubtful", premise.lower()):
            return False
        given, claimed = read(premise), read(claim)
        if not claimed["thing"]:  # a hypernym: the name of a group
            kinds = [kind for kind in THINGS if re.search(rf"\b{kind}\b", claim)]
            kind = [*(group for group, _ in given["thing"]), *kinds]
            same = len(kinds) == 1 and kind[0] == kinds[0]
            claimed = {**claimed, "thing": given["thing"] if same else [("other", 0)]}
        return all(given[kind] == facts for kind, facts in claimed.items() if facts)

    task = entailment.TASK.load()
    for split in (task.train, task.dev):
        for (premise, claim), label in zip(split.texts, split.labels, strict=True):
            assert implied(premise, claim) == (task.labels[label] == "entailment"), (premise, claim)


def test_acceptable_sentences_keep_the_rules() -> None:
    plurals = {plural(word) for group in THINGS.values() for concept in group for word in concept}
    verb = r"(is|are|was|were|has been|have been|seems|seem)"
    agreeing = re.compile(rf"\bthe (\w+) (?:near|from|that|which) .*\b{verb} \w+$", re.IGNORECASE)

    def acceptable(text: str) -> bool:
        present = set(words(text))
        if match := agreeing.search(" ".join(words(text))):
            return (match[1] in plurals) == (match[2] in {"are", "were", "have been", "seem"})
        if present & {"ever", "any"}:
            return bool(present & {"nobody", "no"})
        return bool(present & set(acceptability.TRANSITIVE))

    task = acceptability.TASK.load()
    for split in (task.train, task.dev):
        for (text,), label in zip(split.texts, split.labels, strict=True):
            assert acceptable(text) == label, text
