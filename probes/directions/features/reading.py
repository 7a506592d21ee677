"""What a reader sees of a latent: how often it fires by domain, the texts that it fires on, the words it writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.capture.pair import Pair
from probes.directions.features.dictionary import Dictionary
from probes.directions.features.latents import pieces
from probes.directions.states import Place, States
from probes.measures.logit_lens import Reader
from probes.store.schemas import ALL_DOMAINS
from tv.stats.means import mean_interval

#: Latents that have texts and words; texts of each; tokens on either side of where it fires most; words of a row.
LISTED, TEXTS, AROUND, WORDS = 100, 3, 8, 8


def firing_rates(dictionary: Dictionary, states: States, place: Place) -> pd.DataFrame:
    """`feature domain n rate_base rate_base_lo rate_base_hi rate_tuned …`: means over prompts of the share of places.

    Intervals are over clusters of prompts; n counts prompts.
    """
    n, m = len(states.encoded), dictionary.size
    counts = torch.zeros(2, n, m)
    start = 0
    for x, _, active in pieces(dictionary, states.base[place], states.tuned[place]):
        at = states.text[start : start + len(x)]
        for side, own in enumerate((active.base, active.tuned)):
            counts[side].index_add_(0, at, (own > 0).float().cpu())
        start += len(x)
    shares = (counts / torch.bincount(states.text, minlength=n).clamp(min=1)[None, :, None]).double().numpy()
    clusters = [item.prompt.cluster or item.prompt.id for item in states.encoded]
    domains = np.array([item.prompt.domain for item in states.encoded], dtype=np.str_)
    names = sorted(set(domains.tolist()))
    rows = []
    for domain in [ALL_DOMAINS, *(names if len(names) > 1 else [])]:
        inside = np.flatnonzero((domains == domain) | (domain == ALL_DOMAINS))
        columns: dict[str, object] = {"feature": np.arange(m), "domain": domain, "n": len(inside)}
        for side, name in enumerate(("rate_base", "rate_tuned")):
            mean, lo, hi, *_ = mean_interval(shares[side, inside], [clusters[i] for i in inside])
            columns |= {name: mean, f"{name}_lo": np.maximum(lo, 0.0), f"{name}_hi": hi}
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def top_texts(dictionary: Dictionary, states: States, place: Place, chosen: Sequence[int], pair: Pair) -> pd.DataFrame:
    """`feature text_rank prompt_id pos token activation`: where each chosen latent fires most, token by token."""
    at = torch.tensor(list(chosen), dtype=torch.long)
    worth = torch.cat(
        [
            active.either[:, at].float().cpu()
            for *_, active in pieces(dictionary, states.base[place], states.tuned[place])
        ]
    )
    n, rows, words = len(states.encoded), [], _Words(pair)
    first = torch.searchsorted(states.text, torch.arange(n + 1))
    for column, feature in enumerate(chosen):
        own = worth[:, column]
        most = torch.zeros(n).scatter_reduce(0, states.text, own, "amax")
        for rank, text in enumerate(most.topk(min(TEXTS, n)).indices.tolist()):
            if float(most[text]) <= 0:
                break
            start, end = int(first[text]), int(first[text + 1])
            peak = start + int(own[start:end].argmax())
            for i in range(max(start, peak - AROUND), min(end, peak + AROUND + 1)):
                item, pos = states.encoded[text], int(states.pos[i])
                rows.append((feature, rank, item.prompt.id, pos, words[item.ids[pos]], float(own[i])))
    return pd.DataFrame(rows, columns=["feature", "text_rank", "prompt_id", "pos", "token", "activation"])


def written_words(dictionary: Dictionary, chosen: Sequence[int], pair: Pair) -> pd.DataFrame:
    """`feature row word_rank token_id token logit`: what a decoder row reads as, through the final norm.

    `row` is `base`, `tuned` (each through its own model's norm and unembedding), or `change`: d_tuned − d_base, through
    the tuned model's.
    """
    form = pair.norms[pair.architecture.final_norm]
    readers = [
        Reader.of(model, pair.architecture, form, flow.logit_scale, flow.cap)
        for model, flow in zip(pair.models, pair.flows, strict=True)
    ]
    at, words, rows = list(chosen), _Words(pair), []
    d_base, d_tuned = dictionary.decoder[:, at]
    each: list[tuple[str, Tensor, Reader]] = [("tuned", d_tuned, readers[1])]
    if dictionary.form == "crosscoder":
        each += [("base", d_base, readers[0]), ("change", d_tuned - d_base, readers[1])]
    for name, direction, reader in each:
        found = _words_of(direction, reader)
        for feature, values, ids in zip(at, found[0].tolist(), found[1].tolist(), strict=True):
            for rank, (value, token) in enumerate(zip(values, ids, strict=True)):
                rows.append((feature, name, rank, token, words[token], value))
    return pd.DataFrame(rows, columns=["feature", "row", "word_rank", "token_id", "token", "logit"])


@torch.inference_mode()
def _words_of(direction: Float[Tensor, "k d_model"], reader: Reader) -> tuple[Tensor, Int[Tensor, "k words"]]:
    logits = reader.logits(direction)
    return logits.topk(min(WORDS, logits.shape[1]), dim=1)


class _Words(dict[int, str]):
    """Tokens as text, each decoded once."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.tokenizer = pair.tokenizer

    def __missing__(self, token: int) -> str:
        self[token] = str(self.tokenizer.decode([token]))
        return self[token]
