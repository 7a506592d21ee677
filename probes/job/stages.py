"""The stages of a job that write tables: each does what is missing, and what is there whole is not made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from probes.attribution.kept import Kept
from probes.capture.answers import Answer, answers
from probes.capture.batch_files import kept_prompts
from probes.capture.behaviour_floor import behaviour_floor
from probes.capture.final_answers import TOKENS, final_answers, tokens_shown
from probes.capture.noise_floor import has_noise_floor, noise_floor
from probes.capture.own_tokens import own_answers
from probes.capture.shards import run_shards
from probes.discovery.discover import discoveries
from probes.discovery.elsewhere import spread_over
from probes.discovery.found import with_a_finding
from probes.discovery.kept import Kept as KeptDiscovery
from probes.discovery.part import parts_of
from probes.discovery.tuning_kind import READS, tuning_kind, weights_for_kind
from probes.job.effects import effects_of
from probes.job.pairs import Opened
from probes.reporting.prompts import most_changed
from probes.store.journal import KEPT
from probes.store.run import Run
from probes.store.schemas import SCHEMAS
from probes.store.writer import RunWriter
from probes.suite import Discovery
from tv.checkpoints.opening import Source
from tv.measures.cosine import cosine
from tv.measures.declared import TABLES as WEIGHT_TABLES
from tv.measures.tables import measured
from tv.prompts.encoding import Encoded
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    from probes.job.job import Job


Tables: TypeAlias = dict[str, pd.DataFrame]
#: What the parts of the unfinished pieces of two stages are: modules, and batches of either floor.
MODULES, FLOORS = "modules", ("gates", "behaviour")


def write_prompts(writer: RunWriter, encoded: Sequence[Encoded]) -> None:
    """The table `prompts`."""
    rows = pd.DataFrame([asdict(item.prompt) | {"answer_pos": item.answer_pos} for item in encoded])
    rows = rows.rename(columns={"id": "prompt_id"})
    writer.write("prompts", rows, shard="00000")


def write_weights(writer: RunWriter, job: Job) -> None:
    """The tables of weights of every tuned model, and the cosines between several."""
    # On the CPU, wherever models compute, so that a run on GPUs has the same tables.
    compute = replace(job.compute, device="cpu", cache=job.models.compute.cache)
    if job.suite.align:  # a checkpoint written differently is open here alone
        compute = replace(compute, workers=1, engine="local")
    for i, opened in enumerate(job.pairs):
        shard = f"{i:05d}"

        def made(pair: Opened = opened, shard: str = shard) -> dict[str, pd.DataFrame]:
            base: Source = pair.base
            tuned: Source = pair.tuned
            if compute.elsewhere:  # other processes open the checkpoints themselves
                base, tuned = job.suite.base, job.suite.tuned[pair.name]
            names = [name for name, table in WEIGHT_TABLES.items() if table.in_runs]
            kept = writer.unfinished("weights", shard, MODULES)
            tables = measured(base, tuned, names, job.suite.epsilons, compute=compute.about(pair.name), kept=kept)
            if not pair.base.architecture.tied:  # to a process that opens this pair alone it may be, of equal numbers
                tables["weights"] = tables["weights"].assign(tied=False)
            return {name: table.assign(tuned=pair.name) for name, table in tables.items()}

        writer.stage("weights", shard, made)
    if len(job.pairs) > 1:
        writer.stage("cosines", "00000", partial(_cosines, job.pairs, compute))


def _cosines(pairs: Sequence[Opened], compute: Compute) -> dict[str, pd.DataFrame]:
    """The cosines between the tuning vectors, over all parameters and layer by layer."""
    tuned = {pair.name: pair.tuned for pair in pairs}
    rows = cosine(pairs[0].base, tuned, level="layer", compute=compute)
    return {"cosines": rows.rename(columns={"a": "tuned", "b": "reference"})[SCHEMAS["cosines"].names]}


def write_activations(writer: RunWriter, job: Job) -> None:
    """Capture every tuned model's shards, except those that are there whole."""
    if job.suite.tokenizer == "own":
        return _answers(writer, job)
    encoded = job.encoded
    for i, pair in enumerate(job.pairs):
        work = job.shards(pair.name)
        left = [shard for shard in work if not writer.has("capture", shard.name)]
        done = len(encoded) - sum(len(shard.encoded) - kept_prompts(writer.path, shard.name) for shard in left)

        def told(prompts: int, name: str = pair.name) -> None:
            nonlocal done
            done += prompts
            job.compute.tell(f"capture {name}", done, len(encoded))

        told(0)
        for row in run_shards(left, job.models, writer.path, compute=job.compute, via=writer.via, progress=told):
            writer.complete("capture", row)
        if job.suite.answer_pattern is not None:
            writer.stage("capture", f"{pair.name}-answers", partial(_final_answers, job, pair.name, i == 0))
        if job.models.answers and not job.models.streams:  # a streamed model reads all weights for each token
            writer.stage("answers", f"{i:05d}", partial(_written, job, pair.name, writer.so_far({})))
        else:
            writer.has("answers", f"{i:05d}")  # of a process that had the models in memory


def _written(job: Job, name: str, run: Run) -> dict[str, pd.DataFrame]:
    """What both models write after the prompts that the report will show."""
    suite, shown = job.suite, set(most_changed(run, name))
    asked = [item for item in job.encoded if item.prompt.id in shown]
    ends = set().union(*job.models.ends.values())
    job.compute.tell(f"answers {name}", 0, len(asked))
    known = _known_answers(job, name, run)
    rows = answers(job.models.pair(name), name, asked, tokens=tokens_shown(suite), ends=ends, known=known)
    job.compute.tell(f"answers {name}", len(asked), len(asked))
    return {"answers": rows.assign(tuned=name)}


def _known_answers(job: Job, name: str, run: Run) -> dict[str, Answer]:
    """By prompt, what the base wrote beside tuned models of as many words as this one."""
    if "answers" not in run.tables:
        return {}
    words = {pair.name: pair.tuned.architecture.vocab_size for pair in job.pairs}
    alike = [other for other in words if words[other] == words[name]]
    rows = run.df("answers", where=[("model", "==", "base"), ("tuned", "in", alike)])
    return {row.prompt_id: (row.answer, row.n_tokens, row.end) for row in rows.itertuples()}


def _final_answers(job: Job, name: str, with_base: bool) -> dict[str, pd.DataFrame]:
    suite, pair = job.suite, job.models.pair(name)
    rows = final_answers(
        pair,
        name,
        job.encoded,
        suite.answer_pattern or "",
        tokens=(suite.generate and suite.generate.tokens) or TOKENS,
        ends=set().union(*job.models.ends.values()),
        with_base=with_base,
    )
    return {"behaviour": rows}


def _answers(writer: RunWriter, job: Job) -> None:
    """What both models answer to their own tokens: nothing else of them is compared."""
    for i, pair in enumerate(job.pairs):

        def made(name: str = pair.name, first: bool = i == 0) -> dict[str, pd.DataFrame]:
            return {"behaviour": own_answers(job.models, name, job.prompts, with_base=first)}

        job.compute.tell(f"capture {pair.name}", 0, len(job.prompts))
        writer.stage("capture", f"{i:05d}", made)
        job.compute.tell(f"capture {pair.name}", len(job.prompts), len(job.prompts))


def write_floors(writer: RunWriter, job: Job) -> None:
    """How far the base is from itself in another precision."""
    suite = job.suite
    if not has_noise_floor(suite, job.compute.device):
        return

    def made() -> dict[str, pd.DataFrame]:
        job.compute.tell("noise floor", 0, 1)
        pair, size, tables = job.models.pair(job.pairs[0].name), suite.batch_size, {}
        gates, behaves = (writer.unfinished("noise_floor", "00000", floor) for floor in FLOORS)
        if "gates" in suite.measure:
            tables["noise_floor"] = noise_floor(pair, job.encoded, batch_size=size, seed=suite.seed, kept=gates)
        if "behaviour" in suite.measure or suite.attribute is not None:
            tables["behaviour_floor"] = behaviour_floor(pair, job.encoded, batch_size=size, kept=behaves)
        job.compute.tell("noise floor", 1, 1)
        return tables

    writer.stage("noise_floor", "00000", made)


def write_discoveries(writer: RunWriter, job: Job) -> None:
    """What every tuned model says and represents differently on the texts, beside nulls."""
    suite = job.suite
    if suite.discover is None:
        return
    for i, opened in enumerate(job.pairs):
        shard = f"{i:05d}"

        def made(name: str = opened.name, shard: str = shard, wanted: Discovery = suite.discover) -> Tables:
            pair, told = job.models.pair(name), partial(job.compute.tell, f"discover {name}")
            size, seed, known = suite.batch_size, suite.seed, KeptDiscovery(writer.folder("discover", shard))
            spread = spread_over(job.models, name, job.encoded, wanted, size, seed)
            tables = discoveries(
                pair, job.encoded, wanted, batch_size=size, seed=seed, told=told, kept=known, spread=spread
            )
            return {table: rows.assign(tuned=name) for table, rows in tables.items()}

        writer.stage("discover", shard, made)


def write_kind(writer: RunWriter, job: Job, manifest: Mapping[str, Any]) -> None:
    """What kind of tuning every pair's was, from its weights and its discovery.

    Of a run whose stages leave the weights out, what is read of them is measured here, where Δh is read too.
    """
    wanted = job.suite.discover
    if wanted is None or not ("weights" in job.stages or "difference_lens" in parts_of(wanted)):
        return
    for i, opened in enumerate(job.pairs):

        def made(pair: Opened = opened) -> dict[str, pd.DataFrame]:
            run, own = writer.so_far(manifest), [("tuned", "==", pair.name)]
            tables = {table: run.df(table, where=own) for table in READS if table in run.tables}
            if "weights" not in tables:
                on_cpu = replace(job.compute, device="cpu", workers=1, engine="local")
                tables |= weights_for_kind(pair.base, pair.tuned, compute=on_cpu.about(pair.name))
            return {"tuning_kind": tuning_kind(tables).assign(tuned=pair.name)}

        writer.stage("discover", f"{i:05d}-kind", made)


def write_effects(writer: RunWriter, job: Job, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Attribute every tuned model, from what the stages before have written; `manifest` is the run's so far.

    Returns:
        By tuned model of which nothing was found that effects could be measured on: that it is so.
    """
    if job.suite.attribute is None:
        return {}

    def write(name: str) -> None:
        def made() -> dict[str, pd.DataFrame]:
            known = Kept(writer.path / KEPT / name, earlier=job.measured)
            return effects_of(job.models, writer.so_far(manifest), name, job.compute, known)

        writer.stage("effects", f"{names.index(name):05d}", made)

    names = [opened.name for opened in job.pairs]
    _, missing = with_a_finding(names, write)
    return missing
