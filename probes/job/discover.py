"""A run that looks for what a tuned model does differently, where nobody says what to look for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probes.capture.loading import as_model
from probes.discovery.discover import FEWEST, discovering, require_discovery
from probes.discovery.own_texts import base_writes, is_written, paragraphs, write_texts
from probes.errors import SuiteError
from probes.job.prepare import prepare
from probes.store.run import Run
from probes.suite import discovery_of
from tv.checkpoints.live import LiveSource, load_model, load_tokenizer
from tv.checkpoints.pairing import open_pair
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

    Rerun the same call to resume one that was killed.

    Args:
        base: A directory, a hub id or a live model.
        tuned: The fine-tuned side.
        texts: Files of prompts, whose targets are not read; plain text (.txt, .md), whose paragraphs are texts; or a
            data set's directory or hub id. The base writes some itself where none are given, kept beside the run as
            `<out>.texts.jsonl`.
        out: Where the run goes.
        force: Make the run again, and replace another that is there.
        settings: Of the suite's section `discover`: `parts`, `controls`, `draws`, `null_texts`, `longest`, `tokens`,
            `amplify`; and `seed`.
        compute: Where and how; its workers share the controls.

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
    section = dict(settings or {})
    seed, out = section.pop("seed", 0), Path(out)
    base, tuned = as_model(base), as_model(tuned)
    _require(section, seed, compute)
    if compute.stream and not texts:
        raise SuiteError("discover: a base that is read a layer at a time cannot write texts; give --texts")
    lent = None
    if texts:
        sets = [_as_set(Path(path), out, i) for i, path in enumerate(texts)]
    else:
        opened = open_pair(base, tuned).base  # checked before the base writes anything
        file, stamp = out.parent / f"{out.name}.texts.jsonl", f"own-{opened.fingerprint()['content'][:8]}-{seed}"
        if not is_written(file, stamp):
            lent = load_model(base, dtype=compute.dtype, device=compute.device)
            write_texts(base_writes(lent, load_tokenizer(base), seed), file, stamp)
        sets = [{"file": str(file)}]
    suite = {
        "name": out.name,
        "prompts": sets,
        "measure": ["behaviour"],
        "noise_floor": False,
        "discover": section,
        "seed": seed,
    }
    stages = ("discover", "report")
    job = prepare(suite, base=base, tuned=tuned, out=out, force=force, stages=stages, compute=compute)
    if lent is not None:
        job.models.lend(lent)
    return job.run()


def _require(section: Mapping[str, Any], seed: Any, compute: Compute) -> None:
    """Raise InputError for settings that are wrong whatever the models and texts are, before a file is written."""
    wanted = discovery_of(section, seed)
    require_discovery(wanted, [str(i) for i in range(FEWEST)], compute)
    discovering(compute, wanted)
    if compute.engine != "local":
        raise SuiteError("discover: only local processes can share the work; leave engine out and use workers")


def _as_set(path: Path, out: Path, i: int) -> dict[str, str]:
    """The prompt set of a file or of a data set."""
    if path.suffix.lower() in (".txt", ".md"):
        file = out.parent / f"{out.name}.{i}-{path.stem}.jsonl"
        write_texts(paragraphs(path), file, f"{i}-{path.stem}")
        return {"file": str(file)}
    return {"file" if path.suffix and not path.is_dir() else "dataset": str(path)}
