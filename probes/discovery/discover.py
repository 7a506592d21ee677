"""A discovery from end to end: every part on one pair and its texts, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import filter as named_as
from itertools import accumulate

import pandas as pd

from probes.capture.pair import Pair
from probes.discovery.kept import Kept
from probes.discovery.observing import Texts, null_texts, observe, sides_of
from probes.discovery.part import ALL, PARTS, Context, parts_of
from probes.discovery.presence import DRAWS, LONGEST, TOKENS
from probes.discovery.sides import Sides, n_weights
from probes.discovery.work import affordable, together
from probes.errors import RunError, SuiteError
from probes.suite import Discovery
from tv.architecture.values import values_of
from tv.prompts.encoding import Encoded
from tv.runtime.compute import Compute
from tv.runtime.seeds import seed_of

Told = Callable[[int, int, str], None]
#: With fewer texts no half has enough of them to say anything.
FEWEST = 16
#: The same of the clusters that texts are drawn with.
FEWEST_CLUSTERS = 4


def require_discovery(wanted: Discovery, clusters: Sequence[str], compute: Compute) -> None:
    """Raise InputError, before any work, where a discovery cannot be made of this; `clusters` has each text's."""
    n_texts, n_clusters = len(clusters), len(set(clusters))
    for name in wanted.parts:
        if name not in (*PARTS, ALL):
            raise SuiteError(f"discover: there is no part {name!r}; there are {', '.join(PARTS)}, and {ALL}")
    if n_texts < FEWEST:
        raise RunError(f"discover: {n_texts} texts are too few to find something in one half and test it in the other")
    if n_clusters < FEWEST_CLUSTERS:
        raise RunError(
            f"discover: all {n_texts} texts are of {n_clusters} cluster{'s' * (n_clusters > 1)}, which lie in one half "
            f"each; give texts of at least {FEWEST_CLUSTERS}"
        )
    if wanted.tokens is not None and wanted.tokens < FEWEST * wanted.longest:
        raise SuiteError(
            f"discover: {wanted.tokens} tokens may be fewer than {FEWEST} texts of {wanted.longest}; give at least "
            f"{FEWEST * wanted.longest}, or a smaller longest"
        )
    _require_float32(compute.dtype)


def require_parameters(wanted: Discovery, names: Iterable[str]) -> None:
    """Raise SuiteError where none of the base's parameters is one of those to be amplified."""
    there = list(names)
    for glob in wanted.amplify if "amplified" in parts_of(wanted) else ():
        if not named_as(there, glob):
            raise SuiteError(f"discover: amplify: no parameter of the base is named {glob!r}, such as {there[0]}")


def discovering(compute: Compute) -> Compute:
    """The same for a run that discovers: never streamed. Raises RunError where it is asked to be."""
    if compute.stream:
        raise RunError(
            "stream: a discovery needs both models in memory; leave --stream out, or name the other stages with "
            "--stages"
        )
    return replace(compute, stream=False)


def _require_float32(dtype: str) -> None:
    if dtype != "float32":
        raise RunError("discover: differences of logits are smaller than half precision rounds; leave out --dtype")


def discoveries(
    pair: Pair,
    encoded: Sequence[Encoded],
    wanted: Discovery,
    *,
    batch_size: int,
    seed: int,
    told: Told | None = None,
    kept: Kept | None = None,
) -> dict[str, pd.DataFrame]:
    """Every table of the parts that are asked for.

    Args:
        pair: The two models, float32.
        encoded: The texts; what a prompt's target adds is not read.
        wanted: Which parts, against which controls.
        batch_size: Texts in one forward pass.
        seed: Of the halves, the controls and all that is sampled.
        told: Called with (done, all, a label).
        kept: Where a killed process kept what it had found, and this one does.

    Returns:
        By name: `discovered_words` of all parts, and the tables that parts have of their own.

    Raises:
        RunError: The models are not float32.
        SuiteError: No parameter is one of those to be amplified.
    """
    _require_float32(str(pair.base.dtype).removeprefix("torch."))
    texts = _drawn([_cut(item, wanted.longest) for item in encoded], wanted.tokens, seed)
    names = parts_of(wanted)
    sides, lengths = sides_of(wanted.controls, wanted.draws), [len(item.ids) for item in texts]
    batch_size = together(batch_size, max(lengths), pair.architecture.vocab_size)
    n_null = null_texts(pair, lengths, len(sides), wanted.null_texts)
    read = Texts.of(texts, n_null, batch_size, pair.pad_id, seed)
    # Of both models, behind each text, what the tuned one and every sham write, plain and amplified.
    written = affordable(n_weights(pair.base), (1 + wanted.draws) * 3 * (LONGEST + DRAWS * TOKENS), 0)
    # Fewer cannot tell how often a word is written: shams leave it, and the tuned model has samples to be read.
    read = replace(read, n_written=max(written, FEWEST), shams_write=written >= FEWEST)
    require_parameters(wanted, values_of(pair.base))
    context = Context(pair, read, Sides(pair, texts, batch_size, seed), seed, wanted.amplify)
    parts = {name: PARTS[name](context) for name in names}

    if kept:
        kept.restore(parts)

    def reading(done: int, all_of_them: int) -> None:
        if kept:
            kept.keep(done, parts, last=done == all_of_them)
        if told:
            told(done, all_of_them, "models and controls read")

    observe(context.sides, read, sides, list(parts.values()), reading, begin=kept.done if kept else 0)
    found: dict[str, list[pd.DataFrame]] = {"discovered_texts": [read.rows()]}
    for done, (name, part) in enumerate(parts.items(), 1):
        for table, rows in part.results():
            found.setdefault(table, []).append(rows)
        if told:
            told(done, len(parts), name)
    return {table: pd.concat(rows, ignore_index=True) for table, rows in found.items()}


def _cut(item: Encoded, longest: int) -> Encoded:
    """The text without its target, and not all of a long one."""
    return replace(item, ids=item.ids[: min(item.n_text, longest)])


def _drawn(texts: Sequence[Encoded], tokens: int | None, seed: int) -> list[Encoded]:
    """As many texts as a budget of tokens has room for, drawn by their ids, in the order given."""
    if tokens is None:
        return list(texts)
    order = sorted(texts, key=lambda item: seed_of(f"drawn {seed} {item.prompt.id}"))
    ends = accumulate(len(item.ids) for item in order)
    within = {item.prompt.id for item, end in zip(order, ends, strict=True) if end <= tokens}
    return [item for item in texts if item.prompt.id in within]
