"""Peak memory over a checkpoint larger than it: `python benchmarks/large_checkpoint.py --gigabytes 4`.

Writes a random pair of sharded bfloat16 Llamas, `--gigabytes` a side, and reads it in fresh processes: the two sides
alone, W and T of every module, then everything that `tv.weights` measures without heads. Prints each one's peak beyond
what importing takes, in units of the largest matrix in float32. Resident memory is counted, pages of the mapped files
included. The directory is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BOUND = 6  # largest matrices that the peak may hold beyond the imports
_MIB = 2**20


def main() -> None:
    """Write the pair, measure each kind of work in a process of its own, print one row a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of each side")
    parser.add_argument("--hidden", type=int, default=1024, help="d_model; the MLP is four times as wide")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--work", choices=list(WORK), nargs="*", default=list(WORK))
    parser.add_argument("--directory", type=Path, help="where the temporary directory goes")
    parser.add_argument("--pair", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pair:
        print(json.dumps(_measure(options.work[0], *options.pair)))
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        base, tuned = Path(folder) / "base", Path(folder) / "tuned"
        layers, size = _write(base, tuned, options.gigabytes, options.hidden, options.vocabulary)
        largest = 4 * max(options.vocabulary, 4 * options.hidden) * options.hidden / _MIB
        print(f"{layers} layers, {size / 1e9:.2f} GB a side; largest matrix in float32: {largest:.0f} MiB")
        print(f"{'work':<10}{'imports':>12}{'peak':>12}{'(peak − imports)/largest':>28}{'seconds':>10}")
        for work in options.work:
            command = [sys.executable, __file__, "--work", work, "--pair", str(base), str(tuned)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            ratio = (found["peak"] - found["imports"]) / largest
            verdict = "within" if ratio <= BOUND else "over"
            print(
                f"{work:<10}{found['imports']:>8.0f} MiB{found['peak']:>8.0f} MiB{ratio:>21.2f} ({verdict} {BOUND})"
                f"{found['seconds']:>8.0f}",
                flush=True,
            )


def _read(base: Path, tuned: Path) -> None:
    import tv

    pair = tv.open_pair(base, tuned)
    for module in pair.modules:
        weight, delta = pair.weight(module), pair.delta(module)
        del weight, delta


def _weights(base: Path, tuned: Path) -> None:
    import tv

    tv.measured(base, tuned, ("weights", "alignment"), heads=False)


WORK = {"read": _read, "weights": _weights}


def _measure(work: str, base: Path, tuned: Path) -> dict[str, float]:
    """Resident memory in MiB after the imports, and at its highest, of this process."""
    import tv  # noqa: F401

    imports, start = _resident("VmRSS"), time.perf_counter()
    WORK[work](base, tuned)
    return {"imports": imports, "peak": _resident("VmHWM"), "seconds": time.perf_counter() - start}


def _resident(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def _write(base: Path, tuned: Path, gigabytes: float, hidden: int, vocabulary: int) -> tuple[int, int]:
    """Write the pair, one shard of both in memory at a time. Returns the layers and the bytes of a side."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    inner = 4 * hidden
    a_layer = 2 * (hidden * (2 * hidden + hidden // 2) + 3 * hidden * inner)  # q, o; k and v; gate, up, down
    layers = max(1, round((gigabytes * 1e9 - 4 * vocabulary * hidden) / a_layer))
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        vocab_size=vocabulary,
    )
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    total = 0
    for path in (base, tuned):
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(path)
    shards = [_ends(vocabulary, hidden), *(_layer(i, hidden, inner) for i in range(layers))]
    for number, shapes in enumerate(shards):
        file = f"model-{number:05d}.safetensors"
        before, after = {}, {}
        for name, shape in shapes:
            weight = torch.randn(shape, generator=generator).mul_(0.02)
            before[name] = weight.bfloat16()
            after[name] = weight.add_(torch.randn(shape, generator=generator), alpha=2e-4).bfloat16()
            index[name] = file
        total += sum(value.numel() * 2 for value in before.values())
        for path, tensors in ((base, before), (tuned, after)):
            save_file(tensors, path / file)
    for path in (base, tuned):
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (path / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    return layers, total


def _ends(vocabulary: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "lm_head.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)


def _layer(layer: int, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix = f"model.layers.{layer}"
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    for name, rows in (("q", hidden), ("k", hidden // 4), ("v", hidden // 4), ("o", hidden)):
        yield f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden)
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield f"{prefix}.mlp.{name}_proj.weight", shape


if __name__ == "__main__":
    main()
