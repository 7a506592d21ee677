"""A discovery from end to end: every part on one pair and its texts, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import filter as named_as
from itertools import accumulate

import pandas as pd

from probes.capture.pair import Pair
from probes.discovery.kept import Kept
from probes.discovery.observing import Texts, null_texts, observe, sides_of
from probes.discovery.part import ALL, PARTS, Context, Part, parts_of
from probes.discovery.presence import DRAWS, LONGEST, TOKENS
from probes.discovery.sides import SHAM, Side, Sides, n_weights
from probes.discovery.work import affordable, together
from probes.errors import RunError, SuiteError
from probes.suite import Discovery
from tv.checkpoints.streamed import is_streamed, stored_values
from tv.errors import choices
from tv.prompts.encoding import Encoded
from tv.runtime.compute import Compute
from tv.runtime.seeds import seed_of

Told = Callable[[int, int, str], None]
#: Given a search, where its findings are kept, and what is called with how many sides are seen: sees all of them.
Spread = Callable[["Search", Kept, Callable[[int], None]], None]
#: With fewer texts no half has enough of them to say anything.
FEWEST = 16
#: The same of the clusters that texts are drawn with.
FEWEST_CLUSTERS = 4


def require_discovery(wanted: Discovery, clusters: Sequence[str], compute: Compute) -> None:
    """Raise InputError, before any work, where a discovery cannot be made of this; `clusters` has each text's."""
    n_texts, n_clusters = len(clusters), len(set(clusters))
    for name in wanted.parts:
        if name not in (*PARTS, ALL):
            raise SuiteError(f"discover: no part {name!r}{choices(name, (*PARTS, ALL))}")
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


def discovering(compute: Compute, wanted: Discovery) -> Compute:
    """The same for a run that discovers. Raises RunError where it is to be streamed and a part needs whole models.

    Where nothing is asked for, such a run is not streamed.
    """
    others = [name for name in parts_of(wanted) if name in PARTS and not PARTS[name].streams]
    if compute.stream and others:
        able = ", ".join(name for name, part in PARTS.items() if part.streams)
        raise RunError(
            f"stream: {', '.join(others)} of a discovery need both models in memory, and {able} do not; choose among "
            "these (--part, or parts: [token_shifts]), or leave --stream out"
        )
    return replace(compute, stream=False) if others else compute


def _require_float32(dtype: str) -> None:
    if dtype != "float32":
        raise RunError("discover: differences of logits are smaller than half precision rounds; leave out --dtype")


@dataclass(frozen=True)
class Search:
    """A pair, its texts and the parts that look at them: every process that shares a discovery has its own."""

    context: Context
    parts: dict[str, Part]
    which: list[Side]

    @classmethod
    def of(cls, pair: Pair, encoded: Sequence[Encoded], wanted: Discovery, batch_size: int, seed: int) -> Search:
        """Nothing is read yet. Raises InputError for parameters that are not there, and where streaming cannot be."""
        texts = _drawn([_cut(item, wanted.longest) for item in encoded], wanted.tokens, seed)
        which, lengths = sides_of(wanted.controls, wanted.draws), [len(item.ids) for item in texts]
        batch_size = together(batch_size, max(lengths), pair.architecture.vocab_size)
        n_null = null_texts(pair, lengths, len(which), wanted.null_texts)
        read = Texts.of(texts, n_null, batch_size, pair.pad_id, seed)
        # Of both models, behind each text, what the tuned one and every sham write, plain and amplified.
        written = affordable(n_weights(pair.base), (1 + wanted.draws) * 3 * (LONGEST + DRAWS * TOKENS), 0)
        # Fewer cannot tell how often a word is written: shams leave it, and the tuned model has samples to be read.
        read = replace(read, n_written=max(written, FEWEST // 2), shams_write=written >= FEWEST)
        require_parameters(wanted, stored_values(pair.base))
        if is_streamed(pair.base) and SHAM in wanted.controls and not pair.architecture.chained:
            raise RunError(
                "discover: a block passes on more than its output, so a sham's gradient needs whole models; leave "
                "--stream out"
            )
        context = Context(pair, read, Sides(pair, texts, batch_size, seed), seed, wanted.amplify)
        return cls(context, {name: PARTS[name](context) for name in parts_of(wanted)}, which)

    def anew(self) -> Search:
        """The same with parts that have seen nothing."""
        return replace(self, parts={name: PARTS[name](self.context) for name in self.parts})

    def see(self, first: int, last: int, told: Callable[[int], None]) -> None:
        """Show the sides of these numbers to every part."""
        context, observers = self.context, list(self.parts.values())
        observe(context.sides, context.texts, self.which[:last], observers, lambda done, _: told(done), begin=first)


def discoveries(
    pair: Pair,
    encoded: Sequence[Encoded],
    wanted: Discovery,
    *,
    batch_size: int,
    seed: int,
    told: Told | None = None,
    kept: Kept | None = None,
    spread: Spread | None = None,
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
        spread: Has other processes look at the controls, where there are some; what they find is joined in `kept`.

    Returns:
        By name: `discovered_words` of all parts, and the tables that parts have of their own.

    Raises:
        RunError: The models are not float32; a part's findings cannot be sent to other processes.
        SuiteError: No parameter is one of those to be amplified.
    """
    _require_float32(str(pair.base.dtype).removeprefix("torch."))
    search = Search.of(pair, encoded, wanted, batch_size, seed)
    parts, n = search.parts, len(search.which)
    if kept:
        kept.restore(parts)
    told = told or (lambda *_: None)

    def seen(done: int) -> None:
        if kept:
            kept.keep(done, parts, last=done == n)
        told(done, n, "models and controls read")

    if spread is None or kept is None:
        search.see(kept.done if kept else 0, n, seen)
    else:
        spread(search, kept, lambda done: told(done, n, "models and controls read"))
    found: dict[str, list[pd.DataFrame]] = {"discovered_texts": [search.context.texts.rows()]}
    for done, (name, part) in enumerate(parts.items(), 1):
        for table, rows in part.results():
            found.setdefault(table, []).append(rows)
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
