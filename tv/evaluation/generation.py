"""How well a model writes: held-out perplexity, variety, repetition, form, overlap with a target, a judge's score."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tv.checkpoints.live import LiveSource, load_model, load_tokenizer
from tv.checkpoints.own_tokenizer import asks_for_lent, beside_first, borrow_template, lenders, owned
from tv.errors import InputError
from tv.evaluation.decoding import Decoding, decoded_by, decoding_note, require_decoding
from tv.evaluation.ends import ends_by, own_ends
from tv.evaluation.greedy import continue_greedily, end_ids
from tv.evaluation.judge import Judge
from tv.prompts.behaviour import PromptSource, batched, behaviour, gather, require_rows
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.prompts.notes import prompt_notes
from tv.prompts.placeholders import require_text
from tv.prompts.template import settled
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_COLUMNS = ["variant", "task", "item_id", "metric", "value", "response", "target", "cluster"]


def quality(
    models: LiveSource | Mapping[str, LiveSource],
    prompts: PromptSource | Sequence[PromptSource],
    *,
    texts: PromptSource | Sequence[PromptSource] = (),
    pattern: str | None = None,
    judge: Judge | None = None,
    base: LiveSource | None = None,
    tokenizer: LiveSource | None = None,
    new_tokens: int = 64,
    decoding: Decoding = "greedy",
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """What each model writes after every prompt (up to a line's end or `new_tokens`), and how good it is.

    The rows are in the columns of `tv.evaluate`, so that its `summarise` and `compare` take them. Metrics:

    - `words`; `distinct_1`, `distinct_2`: unique n-grams over all of them, in this response, NaN where it has none;
      `repetition`: 1 − the same of 4-grams, 0 where it is too short to repeat
    - `format`: 1 where `pattern` matches from the response's start, else 0
    - `rouge_l`: F of the longest common subsequence with the prompt's target (ROUGE-L; needs rouge_score)
    - `judge`: what `judge` gives it
    - `nll`, of every row of `texts`: mean −log p of a token, nats; e to its mean over tokens is the perplexity

    Args:
        models: One (called "model") or several by name: whatever `tv.open_checkpoint` opens, or a live model.
        prompts: What the models continue: JSONL files, `tv.PromptSet`s or `tv.Prompt`s, one or several.
        texts: Likewise: texts that are only read, whose `nll` is measured.
        pattern: A regular expression for `format`; default: the metric is left out.
        judge: Asked about every response; default: the metric is left out.
        base: The base of the tuning vectors and adapters among the models.
        tokenizer: A source whose tokenizer serves every model; without it `base`'s. Live models, and all where there
            is no base, then use their own.
        new_tokens: How many tokens a model writes at most.
        decoding: "greedy": the argmax of the logits at every step, up to an end-of-text token of any of the models, for
            every model alike; nothing else in a checkpoint's generation settings is used. "checkpoint": each by its
            own settings (penalties, beams, suppressed tokens, sampling with a fixed seed, …).
        batch_size: Prompts in one forward pass.
        compute: Where and in what dtype models compute, and how to report progress.

    Returns:
        A row per model, prompt and metric: `variant task item_id metric value response target cluster`. `task` is the
        prompt's set, `item_id` its id, `cluster` its cluster or itself. `attrs["decoding"]` says of every model by what
        rule it wrote, `.attrs["notes"]` how the prompts were read, and where the models' own end-of-text tokens differ.

    Raises:
        InputError: Bad prompts, a bad pattern, a model that cannot be loaded, or a judge that fails.

    Source: arXiv 1510.03055 (distinct-n), arXiv 1908.04319 (repetition).

    Examples:
        >>> prompts = tv.PromptSet(file="data/prompts/medical.jsonl", limit=2)
        >>> items = tv.quality("data/models/medical", prompts, new_tokens=4)
        >>> items[items.metric == "rouge_l"][["item_id", "response", "value"]].values.tolist()
        [['medical-000', 'mordosis.', 1.0], ['medical-001', 'skin.', 1.0]]
    """
    sources = dict(models) if isinstance(models, Mapping) else {"model": models}
    require_decoding(decoding)
    asked, read = gather(prompts), gather(texts) if texts else []
    form = _compiled(pattern)
    rouge = _rouge() if any(prompt.target is not None for prompt in asked) else None
    frames, rules = [], {}
    notes: list[str] = []
    own = {name: owned(source, base) for name, source in sources.items()}
    served = {
        name: load_tokenizer(
            tokenizer or (base if base is not None and not isinstance(source, PreTrainedModel) else source)
        )
        for name, source in sources.items()
    }
    ends_of_each = {name: own_ends(source, served[name], base) for name, source in sources.items()}
    ends, ends_notes = ends_by(decoding, ends_of_each, served)
    first = next(iter(served.values()))
    for i, (name, source) in enumerate(sources.items()):
        model = load_model(source, base=base, dtype=compute.dtype, device=compute.device)
        words = served[name]
        borrow_template(words, lenders(own, sources, base), asks_for_lent(asked))
        if len(sources) > 1 or base is not None:
            notes += beside_first(name, asked, first, own[name])
        told = [settled(prompt, words) for prompt in asked]
        notes += prompt_notes(asked, words) + prompt_notes(read, words)
        rules[name] = decoding_note(model, decoding)
        responses = write(model, words, told, new_tokens, batch_size, decoding, ends[name])
        rows = [
            _row(prompt, metric, value, response)
            for prompt, response in zip(told, responses, strict=True)
            for metric, value in _measures(prompt, response, form, rouge, judge).items()
        ]
        if read:
            losses = nll(model, words, read, batch_size)
            rows += [_row(prompt, "nll", value, None) for prompt, value in zip(read, losses, strict=True)]
        frames.append(pd.DataFrame(rows).assign(variant=name))
        compute.tell("quality", i + 1, len(sources), name)
    items = pd.concat(frames, ignore_index=True)[_COLUMNS]
    items.attrs |= {"decoding": rules, "notes": list(dict.fromkeys([*notes, *ends_notes]))}
    return items


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int = 64,
    batch_size: int = 16,
    decoding: Decoding = "greedy",
    ends: Collection[int] | None = None,
) -> list[str]:
    """Continuations by this rule, each up to the end of its first line that is not empty.

    One of the tokens `ends` ends it too; without them, those of the model's settings and of the tokenizer.
    """
    if new_tokens < 1 or batch_size < 1:
        raise InputError(f"{new_tokens} new tokens in batches of {batch_size}: both are at least 1")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31 - 1
    encoded = encode(prompts, tokenizer, context - new_tokens)
    require_rows(encoded, tokenizer, model.get_input_embeddings().weight.shape[0])
    require_text(encoded, tokenizer, model.config)
    texts = [item.ids[: item.n_text] for item in encoded]
    ends = end_ids(model, tokenizer) if ends is None else ends
    if decoding == "checkpoint":
        written = _by_settings(model, tokenizer, texts, new_tokens, ends)
    else:
        written = continue_greedily(model, texts, new_tokens, ends=ends, together=batch_size)
    answers = [ids[:-1] if ids and ids[-1] in ends else ids for ids in written]
    return [text.strip().split("\n")[0] for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def nll(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Prompt], batch_size: int = 16
) -> list[float]:
    """Mean −log p of a token of every text (its target apart), nats; NaN for a text of one token."""
    untargeted = [Prompt(text.id, text.set, text.domain, text.text) for text in texts]
    batches = batched(untargeted, model, tokenizer, batch_size)
    losses = behaviour(model, batches)["loss"]
    places = {item.prompt.id: i for i, item in enumerate(item for batch in batches for item in batch.encoded)}
    return [float(losses[places[text.id]]) for text in texts]


def distinct(texts: Sequence[str], n: int) -> float:
    """Unique n-grams of words over all n-grams of `texts` together (arXiv 1510.03055); NaN where there is none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str, n: int = 4) -> float:
    """The share of n-grams that stood before in the text (seq-rep-n, arXiv 1908.04319); 0 where it is too short."""
    return 1 - distinct([text], n) if _grams(text, n) else 0.0


def _measures(
    prompt: Prompt, response: str, form: re.Pattern[str] | None, rouge: RougeScorer | None, judge: Judge | None
) -> dict[str, float]:
    values = {
        "words": float(len(response.split())),
        "distinct_1": distinct([response], 1),
        "distinct_2": distinct([response], 2),
        "repetition": repetition(response),
    }
    if form is not None:
        values["format"] = float(form.match(response.strip()) is not None)
    if rouge is not None and prompt.target is not None:
        values["rouge_l"] = float(rouge.score(prompt.target, response)["rougeL"].fmeasure)
    if judge is not None:
        values["judge"] = judge.score(prompt.text, response, prompt.target)
    return values


def _row(prompt: Prompt, metric: str, value: float, response: str | None) -> dict[str, object]:
    where = {"task": prompt.set, "item_id": prompt.id, "metric": metric, "value": value}
    return where | {"response": response, "target": prompt.target, "cluster": prompt.cluster or prompt.id}


@torch.inference_mode()
def _by_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[int]],
    new_tokens: int,
    ends: Collection[int],
) -> list[tuple[int, ...]]:
    """What the checkpoint's generation settings make of each text, one at a time: no padding, and no penalty on it."""
    written = []
    with decoded_by(model, ends, "checkpoint"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for settings that sample
        for text in texts:
            ids = torch.tensor([text], device=model.device)
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                tokenizer=tokenizer,  # for `stop_strings`
            )
            written.append(tuple(out[0, len(text) :].tolist()))
    return written


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise InputError(f"pattern {pattern!r}: not a regular expression: {error}") from error


def _rouge() -> RougeScorer:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError("ROUGE-L needs rouge_score; install tuning-probes[eval]") from None
    return RougeScorer(["rougeL"])
