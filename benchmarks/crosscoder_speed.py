"""What crosscoders of the embedded family cost, nulls included: `python benchmarks/crosscoder_speed.py`.

1,024 latents over 60,000 tokens of documents of the base's and of the medical kind: CPU seconds of one thread for
reading both models' states, for training and for measuring, of the pair and of its two nulls with two seeds each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import cycle
from pathlib import Path

import torch
from results import add_option, allowed, report

from data.corpus import documents
from probes.capture.pair import make_pair
from probes.directions.features.study import Wanted, study
from probes.directions.features.training import Training
from tv.checkpoints.live import load_model, load_tokenizer
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt

HERE = Path(__file__).resolve().parents[1] / "data" / "models"


def main() -> None:
    """One study, timed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--form", choices=("crosscoder", "delta"), default="crosscoder")
    add_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(HERE / "base")
    pair = make_pair(load_model(HERE / "base"), load_model(HERE / "medical"), tokenizer)
    prompts: list[Prompt] = []
    n = 0
    for kind, stream in cycle([(kind, documents(kind, 1)) for kind in ("base", "medical")]):
        prompts.append(Prompt(f"{kind}-{len(prompts)}", kind, kind, next(stream)))
        n += len(tokenizer(prompts[-1].text).input_ids)
        if n > 1.05 * args.tokens:
            break
    encoded = encode(prompts, tokenizer, pair.architecture.context)
    spent: dict[str, float] = {}
    last = time.process_time()

    def told(label: str, done: int, total: int) -> None:
        nonlocal last
        now = time.process_time()
        spent[label] = spent.get(label, 0.0) + now - last
        last = now

    start = time.process_time()
    wanted = Wanted(
        ("resid_post", 3),
        Training(args.form, args.latents, 16 if args.form == "crosscoder" else 4),
        tokens=args.tokens,
    )
    with tempfile.TemporaryDirectory() as folder:
        tables = study(pair, encoded, wanted, Path(folder), "", told).tables
    whole = time.process_time() - start
    for label, seconds in spent.items():
        print(f"{label:24}{seconds:8.1f} s")
    rows = tables["dictionaries"].set_index(["side", "seed"])
    print(rows[["fvu_base", "fvu_tuned", "fvu_delta", "pca_delta", "l0", "dead", "stability", "called"]].round(4))
    false = rows.called[[("rounded", 1), ("random", 1)]].max()
    print(f"CPU seconds in all {whole:.1f}; largest false rate of a fresh null {false:.4f}")
    report([allowed("crosscoders of 1,024 latents, nulls included", 240, "CPU s", [whole])], args.json)


if __name__ == "__main__":
    main()
