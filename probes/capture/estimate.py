"""The disk space that a run needs, estimated before it starts.

Rows follow from suite, architecture and prompts. Bytes per row were measured on files that this program wrote (zstd,
BYTE_STREAM_SPLIT): a float32 measure takes 3.6 bytes where no value repeats, and the key columns next to nothing,
because rows are sorted. A gate takes 0.95 bits in the base's pattern and 0.75 in the flips, the entropies of 37 %
active and 21 % flipped. The demo's prompts start alike, so its files are smaller, by up to half.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from probes.capture.runner import shards
from probes.errors import RunError
from probes.measures.declared import MEASURES
from probes.measures.places import sampled
from probes.measures.predictions import TOP
from probes.store.journal import BATCHES
from probes.store.schemas import PARTITIONS, SCHEMAS
from probes.suite import MEASUREMENTS, Suite
from tv.architecture.anatomy import Architecture
from tv.prompts.encoding import Encoded, batches, positions

_BYTES = {
    "tokens": 18.0,
    "predictions": 8.0,
    "gates": 30.0,  # and the patterns
    "neurons": 4.0,
    "contributions": 7.3,
    "changes": 25.5,
    "ledger": 36.0,
    "lens": 20.0,
    "behaviour": 5.0,
    "vectors": 2.0,  # and the vectors
}
_BYTES_A_GATE = (0.95 + 0.75) / 8
_BYTES_AN_ENTRY = 2 * 1.9  # float16 of both models, of which zstd saves a little
_BYTES_A_COLUMN = 120  # of each file, whatever it holds
_AS_READ = 4  # rows that are not compressed, and are there twice, to rows in tables


def estimate(
    suite: Suite, architecture: Architecture, encoded: Sequence[Encoded], experts_per_token: int = 0
) -> dict[str, int]:
    """Bytes that each table of activations will take, within a factor of two. The other tables are small."""
    places = sum(len(positions(item, suite.positions)) for item in encoded)
    accounted = sum(len(positions(item, suite.ledger_positions)) for item in encoded)
    through_lens = sum(len(sampled(item, suite.ledger_positions, suite.lens_places)) for item in encoded)
    n_tuned, n_layers = len(suite.tuned), architecture.n_layers
    domains = len({item.prompt.domain for item in encoded})
    n_mixtures = sum(block.experts is not None for block in architecture.blocks)
    widths = [block.gate.shape[0] for block in architecture.blocks if block.gate is not None]
    widths += [  # of every gate pattern of a place
        architecture.module(block.layer, "up", 0).shape[0]
        for block in architecture.blocks
        if block.experts is not None
        for _ in range(experts_per_token)
    ]
    neurons = sum(module.shape[0] for module in architecture.modules if module.name == "up")
    writers = [writer for block in architecture.blocks for writer in block.writers]
    parts = {
        "attn_out": sum(writer.component != "mlp" for writer in writers),
        "head_out": sum(writer.head_module.n_heads for writer in writers if writer.head_module is not None),
        "mlp_out": sum(writer.component == "mlp" for writer in writers),
    }
    components = 1 + sum(parts.get(site, 0) for site in suite.sites)
    components += n_mixtures * experts_per_token * ("mlp_out" in suite.sites)
    modules = sum(module.expert < 0 for module in architecture.modules) + 3 * n_mixtures * experts_per_token
    rows = {
        "tokens": n_tuned * places,
        "predictions": (n_tuned + 1) * places * TOP,
        "gates": n_tuned * places * len(widths),
        "neurons": n_tuned * domains * neurons,
        "lens": n_tuned * through_lens * n_layers,
        "contributions": (n_tuned + 1) * places * components,
        "changes": n_tuned * places * components,
        "ledger": n_tuned * accounted * modules,
        "behaviour": len(encoded) * (4 * n_tuned + 3),
    }
    entries = [
        _width(site, architecture) * (1 if site in ("embed_out", "resid_final") else n_layers) for site in suite.keep
    ]
    extra = {
        "gates": n_tuned * places * sum(widths) * _BYTES_A_GATE,
        "vectors": n_tuned * places * sum(entries) * _BYTES_AN_ENTRY,
    }
    always = "tokens", "predictions"
    wanted = {*suite.measure, *always, "gates" in suite.measure and "neurons", bool(suite.keep) and "vectors"}
    if "gate" not in suite.sites:
        wanted -= {"gates", "neurons"}
    registered = [MEASURES[name] for name in suite.measure if name not in MEASUREMENTS]
    sizes = _BYTES | {measure.form.name: 4.0 * len(measure.form.columns) for measure in registered}
    for measure in registered:
        at = places if measure.at == "positions" else accounted
        rows[measure.form.name] = n_tuned * at * n_layers * len(measure.sites)
    n_shards = n_tuned * len(shards(encoded, suite, "", architecture))
    files = {table: n_shards * (n_layers + 2 if table in PARTITIONS else 1) for table in sizes}
    feet = {table: n * len(SCHEMAS[table]) * _BYTES_A_COLUMN for table, n in files.items()}
    return {
        table: round(rows.get(table, 0) * bytes_per_row + extra.get(table, 0) + feet[table])
        for table, bytes_per_row in sizes.items()
        if table in wanted
    }


def streaming(
    suite: Suite, architecture: Architecture, work: Sequence[Sequence[Encoded]], width: int, experts_per_token: int = 0
) -> int:
    """Bytes that a streamed capture takes besides, at most, until a shard is done; within a factor of two.

    Args:
        suite: What is measured.
        architecture: Of the base.
        work: The prompts of every shard.
        width: Bytes of a number that the models compute.
        experts_per_token: Of a mixture.

    Returns:
        What two layers pass on in both models, what waits for the unembedding, and rows as they were read and as the
        batches that are done hold them.
    """
    numbers = width * architecture.d_model
    n_lens = architecture.n_layers if "lens" in suite.measure else 0
    sizes = [0]
    for encoded in work:
        passed = sum(batch.input_ids.numel() for batch in batches(encoded, suite.batch_size, 0))
        waiting = sum(len(sampled(item, suite.ledger_positions, suite.lens_places)) for item in encoded)
        rows = sum(estimate(suite, architecture, encoded, experts_per_token).values()) // len(suite.tuned)
        sizes.append(numbers * (4 * passed + 2 * n_lens * waiting) + _AS_READ * rows)
    return max(sizes)


def require_space(directory: Path, needed: int, besides: int = 0) -> None:
    """Raise RunError where the disk lacks room for what the run still has to write, for good or for a while."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    done = sum(path.stat().st_size for path in directory.rglob("*.parquet"))
    kept = sum(path.stat().st_size for path in (directory / BATCHES).rglob("*") if path.is_file())
    free = shutil.disk_usage(there).free
    left = max(needed - done, 0) + max(besides - kept, 0)
    if left > free:
        raise RunError(
            f"{there}: the run takes about {_gigabytes(left)}, and {_gigabytes(free)} are free there; choose "
            "another --out, fewer positions, or fewer measurements"
        )


def _width(site: str, architecture: Architecture) -> int:
    """Entries of one vector of a site."""
    if site in ("gate", "gate_act", "up"):
        return max((module.shape[0] for module in architecture.modules if module.name == "up"), default=0)
    if site == "head_out":
        heads = [writer.head_module for block in architecture.blocks for writer in block.writers]
        return max((module.shape[1] for module in heads if module is not None), default=0)
    return architecture.d_model


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
