"""Attention patterns of a finished run's models, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import pandas as pd

from probes.capture.noise_floor import some_of_each_domain
from probes.capture.pair import Pair
from probes.directions.attention import Read, read_attention
from probes.directions.attention_heads import HEAD, head_rows
from probes.directions.attention_patterns import require_patterns
from probes.directions.attention_shown import chosen_heads, chosen_prompts, pattern_rows
from probes.directions.nulls import ROUNDED, null_pair
from probes.errors import RunError
from probes.job.further import Tables, add, encoded_of, named, reopened
from probes.store.run import Run
from probes.store.schemas import ALL_DOMAINS
from probes.suite import Suite
from tv.prompts.encoding import Encoded
from tv.runtime.compute import Compute

#: Draws of random T, and prompts that are read, unless a call says otherwise.
DRAWS, PROMPTS = 4, 96
#: Pairs of tokens that are listed of each head that stands out, and heads that are listed at most.
PAIRS, HEADS = 10, 24


def attention(
    run: Run,
    *,
    tuned: str | Sequence[str] | None = None,
    prompts: int = PROMPTS,
    draws: int = DRAWS,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """How every head's attention pattern changed, and whether its own weights or its input changed it.

    Adds the tables `attention`, `attention_heads`, `attention_pairs` and `attention_patterns` to the run, in place of
    earlier ones of the same models.

    Args:
        run: A finished run.
        tuned: One or several of its tuned models; all without it.
        prompts: How many prompts are read, drawn in turn from every domain.
        draws: Draws of random T of T's norms, the null; at least 2.
        compute: The device and dtype that models compute in, and the progress callback.

    Returns:
        The table `attention_heads`: a row per tuned model, domain and head.

    Raises:
        RunError: No such model, too few draws or prompts, an architecture without attention, models that are read a
            layer at a time, or a checkpoint that is no longer what the run read.

    Examples:
        >>> run = probes.load("reports/demo")
        >>> heads = probes.attention(run, tuned="medical", prompts=4, draws=2)
        >>> shares = heads[["score_own", "score_inherited", "score_interaction"]].sum(axis=1)
        >>> bool((shares - 1).abs().max() < 1e-4), "attention_patterns" in run.tables
        (True, True)
    """
    names = named(run, tuned)
    if draws < 2:
        raise RunError(f"attention: {draws} draws of random T are too few to estimate their spread; give at least 2")
    if prompts < 2:
        raise RunError(f"attention: {prompts} prompts are too few for an interval; give at least 2")
    models = reopened(run, compute)
    by_name: dict[str, Tables] = {}
    for name in names:
        encoded = some_of_each_domain(encoded_of(run, models, name), prompts, models.suite.seed)
        by_name[name] = _tables(models.pair(name), encoded, name, draws, models.suite, compute)
    add(run, by_name)
    return run["attention_heads"]


def _tables(pair: Pair, encoded: Sequence[Encoded], name: str, draws: int, suite: Suite, compute: Compute) -> Tables:
    require_patterns(pair)
    n = len(encoded)
    passes = draws + 2

    def told(i: int, done: int, _total: int) -> None:
        compute.tell(f"attention {name}", i * n + done, passes * n)

    own = read_attention(pair, encoded, batch_size=suite.batch_size, told=partial(told, 0))
    if own.heads.empty:
        why = "; ".join(own.notes) or "no text has more than one token"
        raise RunError(f"attention: no patterns to compare: {why}")
    nulls: list[Read] = []
    for i, (null, draw) in enumerate([(ROUNDED, 0), *(("random", draw) for draw in range(draws))]):
        with null_pair(pair, null, draw, suite.seed) as sham:
            nulls.append(read_attention(sham, encoded, batch_size=suite.batch_size, pairs=0, told=partial(told, i + 1)))
    heads = head_rows(own.heads, nulls[0].heads, [null.heads for null in nulls[1:]], encoded)
    shown = chosen_heads(heads)
    patterns = pattern_rows(pair, chosen_prompts(own.heads, shown, encoded), shown)
    return {
        "attention": own.heads,
        "attention_heads": heads,
        "attention_pairs": _in_words(pair, _pairs(own.pairs, heads), encoded),
        "attention_patterns": _in_words(pair, patterns, encoded),
    }


def _pairs(pairs: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """The pairs of tokens of the heads that stand out over all prompts, largest change first."""
    chosen = heads[(heads.domain == ALL_DOMAINS) & heads.stands_out].nlargest(HEADS, "js")
    pairs = pairs.merge(chosen[HEAD], on=HEAD)
    size = (pairs.weight_tuned - pairs.weight_base).abs()
    pairs = pairs.assign(size=size).sort_values([*HEAD, "size"], ascending=[True, True, True, False], kind="stable")
    pairs["rank"] = pairs.groupby(HEAD).cumcount() + 1
    return pairs[pairs["rank"] <= PAIRS].drop(columns="size").reset_index(drop=True)


def _in_words(pair: Pair, rows: pd.DataFrame, encoded: Sequence[Encoded]) -> pd.DataFrame:
    """The rows with the token of each query and key."""
    ids = {item.prompt.id: item.ids for item in encoded}

    @cache
    def token(prompt: str, pos: int) -> str:
        return "" if pos < 0 else str(pair.tokenizer.decode([ids[prompt][pos]]))

    for end in ("query", "key"):
        places = zip(rows.prompt_id, rows[f"{end}_pos"], strict=True)
        rows[end] = [token(prompt, int(pos)) for prompt, pos in places]
    return rows
