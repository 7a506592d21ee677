"""A run that looks for what a tuned model does differently, where nobody says what to look for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probes.capture.loading import as_model
from probes.discovery.own_texts import base_writes, paragraphs, write_texts
from probes.job.job import Job
from probes.job.prepare import prepare
from probes.store.run import Run
from tv.checkpoints.live import LiveSource, load_model, load_tokenizer
from tv.runtime.compute import Compute


def discover(
    base: LiveSource,
    tuned: LiveSource,
    *,
    texts: Sequence[str | Path] = (),
    out: str | Path = "reports/discovery",
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    compute: Compute = Compute(),
) -> Run:
    """What the tuned model says and favours that the base does not, on any texts, beside nulls.

    Args:
        base: A directory, a hub id or a live model.
        tuned: The fine-tuned side.
        texts: Files of prompts, whose targets are not read, or plain text (.txt, .md), whose paragraphs are texts. The
            base writes some itself where none are given, kept beside the run as `<out>.texts.jsonl`.
        out: Where the run goes.
        force: Make the run again, and replace another that is there.
        settings: Of the suite's section `discover`: `parts`, `controls`, `draws`, `null_texts`, `longest`; and `seed`.
        compute: Where and how.

    Returns:
        The finished run, with its report; the table `discovered_words` has the words of every part.

    Raises:
        InputError: Bad input, in one line.

    Examples:
        >>> less = {"parts": ["token_shifts"], "draws": 16, "null_texts": 24}
        >>> texts = ["data/prompts/general.jsonl"]
        >>> run = probes.discover("data/models/base", "data/models/medical", texts=texts, settings=less)
        >>> words = run["discovered_words"]
        >>> bool(words[words.stands_out].token.str.strip().isin(["treat", "treated", "symptom"]).any())
        True
    """
    return prepare_discovery(base, tuned, texts=texts, out=out, force=force, settings=settings, compute=compute).run()


def prepare_discovery(
    base: LiveSource,
    tuned: LiveSource,
    *,
    texts: Sequence[str | Path] = (),
    out: str | Path = "reports/discovery",
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    compute: Compute = Compute(),
) -> Job:
    """The job of `probes.discover`, its input checked; where no texts are given, the base has written them."""
    given = dict(settings or {})
    seed = given.pop("seed", 0)
    base, tuned = as_model(base), as_model(tuned)
    files = [_as_prompts(Path(path), Path(out)) for path in texts] or [_own(base, Path(out), seed)]
    suite = {
        "name": Path(out).name,
        "prompts": [{"file": str(file)} for file in files],
        "measure": ["behaviour"],
        "noise_floor": False,
        "discover": given,
        "seed": seed,
    }
    return prepare(suite, base=base, tuned=tuned, out=out, force=force, stages=["discover", "report"], compute=compute)


def _as_prompts(path: Path, out: Path) -> Path:
    if path.suffix.lower() not in (".txt", ".md"):
        return path
    file = out.parent / f"{out.name}.{path.stem}.jsonl"
    write_texts(paragraphs(path), file, path.stem)
    return file


def _own(base: LiveSource, out: Path, seed: int) -> Path:
    """What the base writes; of an earlier call with the same base it is the same."""
    file = out.parent / f"{out.name}.texts.jsonl"
    model = load_model(base, dtype="float32", device="cpu")
    write_texts(base_writes(model, load_tokenizer(base), seed), file, "own")
    return file
