"""A suite for a pair of models and files of prompts, written out of what is found in them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from probes.errors import SuiteError
from probes.job.prepare import prepare
from probes.starting.prompt_files import Found, files_of, found
from probes.starting.suite_text import Draft
from probes.suite import name_of
from tv.architecture.in_words import in_words
from tv.checkpoints.live import load_tokenizer
from tv.checkpoints.pairing import WeightPair, open_pair
from tv.checkpoints.tokenizers import tokenizer_of
from tv.errors import CheckpointError, PromptError
from tv.prompts.template import templates_of
from tv.runtime.atomic import replacing


class Written(NamedTuple):
    """A suite on the disk, and what a reader of it should know."""

    path: Path
    sets: list[Found]
    notes: list[str]


def init(
    base: str | Path,
    tuned: str | Path,
    prompts: str | Path | Collection[str | Path],
    *,
    out: str | Path = "suite.yaml",
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a suite with comments for a pair of models and files of prompts.

    The models' headers, their tokenizers and every prompt are read and checked as `probes.run` checks them.

    Args:
        base: The model before fine-tuning: a directory, a hub id or a GGUF file.
        tuned: The model after it; an adapter's directory serves as well.
        prompts: One or several files (JSONL, JSON, CSV, TSV, Parquet), or folders of them.
        out: The suite's path.
        force: Replace what is there.
        settings: Of all prompt sets, as in `tv.PromptSet`: {"columns": {"text": "frage"}}.

    Returns:
        The suite's path, for `probes.run`.

    Raises:
        InputError: Bad input, in one line: models that do not belong together, files that cannot be read, columns of
            which nobody knows what they hold, or a suite that is there already.

    Examples:
        >>> path = probes.init("data/models/base", "data/models/law", "data/prompts/law.jsonl", out="law.yaml")
        >>> probes.load_suite(path).attribute.metric
        'logit_diff'
    """
    return written(base, tuned, prompts, out=out, force=force, settings=settings).path


def written(
    base: str | Path,
    tuned: str | Path,
    prompts: str | Path | Collection[str | Path],
    *,
    out: str | Path,
    force: bool,
    settings: Mapping[str, Any] | None,
) -> Written:
    """As `init`, with what was found."""
    place = Path(out)
    if place.is_dir():
        raise SuiteError(f"{place}: a directory; pass the suite's file with -o, such as {place / 'suite.yaml'}")
    if place.exists() and not force:
        raise SuiteError(f"{place}: there already; use --force to replace it, or -o for another file")
    if not place.absolute().parent.is_dir():
        raise SuiteError(f"{place}: its directory does not exist; make it first")
    files = files_of([prompts] if isinstance(prompts, str | Path) else prompts)
    sets = [found(file, settings or {}) for file in files]
    pair = open_pair(base, tuned)
    if pair.base.fingerprint()["content"] == pair.tuned.fingerprint()["content"]:
        raise CheckpointError(
            f"{tuned}: has the same weights as the base {base}; pass the model before and the one after"
        )
    about = [f"{note}." for note in pair.facts.notes]
    draft = Draft(
        *(name_of(tuned), str(base), str(tuned), sets, _chat(base, pair, sets)),
        *(_described(pair), about, place.absolute().parent),
    )
    with replacing(place, SuiteError) as temporary, tempfile.TemporaryDirectory() as nowhere:
        temporary.write_text(draft.text(), encoding="utf-8")
        job = prepare(temporary, out=Path(nowhere, "run"))
        notes = [*job.pairs[0].facts.notes, *job.notes]
    return Written(place, sets, notes)


def _chat(base: str | Path, pair: WeightPair, sets: list[Found]) -> bool | str | None:
    """Whose chat template there is: true for the base's, "tuned" where only the tuned model has one."""
    if templates_of(load_tokenizer(base)):
        return True
    own = tokenizer_of(pair.tuned)
    if own is not None and templates_of(own):
        return "tuned"
    turns = next((one for one in sets if one.turns), None)
    if turns is not None:
        raise PromptError(
            f"{turns.chosen.place}: its rows are conversations, and neither tokenizer has a chat template; give each "
            "row a text instead"
        )
    return None


def _described(pair: WeightPair) -> str:
    architecture = pair.base.architecture
    return f"{architecture.name}, {in_words(architecture)}, {pair.facts.n_parameters:,} parameters, {pair.base.dtype}."
