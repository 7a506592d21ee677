"""One direction planted: a layer's MLP adds the same vector at every token, whatever it reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tv.checkpoints.live import load_model, load_tokenizer

#: The layer whose MLP adds it, and its length as a share of the mean ‖h‖ there.
LAYER, LENGTH = 3, 0.5
#: What it raises and what it lowers.
TARGET, FOIL = " salt", " lamp"


def plant(base: str | Path, out: str | Path, texts: Sequence[str]) -> Tensor:
    """Write a copy of a Llama with the planted direction, and return the direction, (d_model,).

    Its MLP's last matrix gets v ⊗ a, where a·x is as near 1 as can be for all that the matrix reads in these texts. v
    points from the unembedding's row of the foil to that of the target.

    Args:
        base: A Llama's directory.
        out: Where the tuned model goes.
        texts: What the base reads.
    """
    model, tokenizer = load_model(base, dtype="float32"), load_tokenizer(base)
    tuned = copy.deepcopy(model)
    down = model.get_submodule(f"model.layers.{LAYER}.mlp.down_proj")
    read, left = [], []
    hooks = [
        down.register_forward_pre_hook(lambda _, args: read.append(args[0][0])),
        model.get_submodule(f"model.layers.{LAYER}").register_forward_hook(
            lambda _, __, output: left.append(output[0] if output.ndim == 3 else output)
        ),
    ]
    with torch.inference_mode():
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    x, h = torch.cat(read), torch.cat(left)
    answers = torch.linalg.lstsq(x, torch.ones(len(x), 1), driver="gelsd").solution[:, 0]
    target, foil = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in (TARGET, FOIL))
    unembed = model.get_output_embeddings().weight
    v = unembed[target] - unembed[foil]
    v = LENGTH * h.norm(dim=1).mean() * v / v.norm()
    with torch.no_grad():
        tuned.get_submodule(f"model.layers.{LAYER}.mlp.down_proj").weight += torch.outer(v, answers)
    tuned.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return v.detach()


def prompts(texts: Sequence[str], file: str | Path) -> None:
    """Write these texts as prompts of which the planted direction answers each alike."""
    rows = [
        {"id": f"planted-{i:03d}", "text": text, "target": TARGET, "foil": FOIL, "domain": "planted"}
        for i, text in enumerate(texts)
    ]
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
