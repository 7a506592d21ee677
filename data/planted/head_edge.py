"""Changes written into the base by hand: a head that attends to one token, and an edge from a head to a neuron.

Run `python -m data.planted.head_edge OUT` to write both models.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

BASE = Path(__file__).resolve().parents[1] / "models" / "base"
#: The head that attends to a token, and the token: its key is unlike that of others in this layer.
LAYER, HEAD, TOKEN = 2, 3, " the"
#: The edge: what this head writes, a neuron of a later MLP reads.
FROM_LAYER, FROM_HEAD, TO_LAYER, TO_NEURON = 1, 0, 4, 7
#: Turns of rotary pairs from this one on are slow: over a prompt they leave a key as it is.
_SLOW = 5


def attending(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: float = 12.0
) -> None:
    """Make one head of a llama attend to a token, by its query rows alone.

    Args:
        model: A copy of the base; it is changed.
        tokenizer: Its tokenizer.
        texts: Where its inputs are looked at; the token is in some of them.
        size: How far the token's score is above that of others, about, in nats.
    """
    attention = model.model.layers[LAYER].self_attn
    inputs, ids = _entering(model, tokenizer, texts, attention)
    wanted = tokenizer.encode(TOKEN, add_special_tokens=False)[0]
    width, group = attention.head_dim, attention.num_key_value_groups
    kv = HEAD // group
    keys = inputs @ attention.k_proj.weight[kv * width : (kv + 1) * width].T
    slow = torch.arange(width) % (width // 2) >= _SLOW
    chosen, others = keys[ids == wanted][:, slow], keys[ids != wanted][:, slow]
    step = chosen.mean(0) - others.mean(0)
    apart = torch.zeros(width)
    apart[slow] = torch.linalg.solve(others.T.cov() + 1e-3 * torch.eye(int(slow.sum())), step)  # Fisher's direction
    middle = inputs.mean(0)
    scale = size / (attention.scaling * (apart[slow] @ step))
    with torch.no_grad():
        rows = attention.q_proj.weight[HEAD * width : (HEAD + 1) * width]
        rows += scale * torch.outer(apart, middle / (middle @ middle))


def wired(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    towards: Float[Tensor, " d_model"],
    size: float = 5.0,
) -> None:
    """Let a head write a direction that hardly anything reads, and a later neuron turn it into logits.

    Args:
        model: A copy of the base; it is changed.
        tokenizer: Its tokenizer.
        texts: Where its inputs are looked at.
        towards: What the neuron writes, of norm 1.
        size: How large what the head writes is, and what the neuron gives, about.
    """
    attention, mlp = model.model.layers[FROM_LAYER].self_attn, model.model.layers[TO_LAYER].mlp
    width = attention.head_dim
    z, _ = _entering(model, tokenizer, texts, attention.o_proj)
    own = z[:, FROM_HEAD * width : (FROM_HEAD + 1) * width].mean(0)
    unread = _least_read(model)
    gain = model.model.layers[TO_LAYER].post_attention_layernorm.weight.detach()
    with torch.no_grad():
        columns = attention.o_proj.weight[:, FROM_HEAD * width : (FROM_HEAD + 1) * width]
        columns += size * torch.outer(unread, own / (own @ own))
        mlp.gate_proj.weight[TO_NEURON] = 2 * unread / gain
        mlp.up_proj.weight[TO_NEURON] = 2 * unread / gain
        mlp.down_proj.weight[:, TO_NEURON] = size * towards


def answer_direction(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, word: str
) -> Float[Tensor, " d_model"]:
    """The direction, of norm 1, that raises the logit of a word's first token."""
    row = model.get_output_embeddings().weight[tokenizer.encode(word, add_special_tokens=False)[0]].detach()
    return row / row.norm()


def write(out: Path, texts: Sequence[str]) -> tuple[Path, Path]:
    """Write both models below `out`: `attending`, and `wired` towards the first letters of " the"."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    paths = []
    for name in ("attending", "wired"):
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        if name == "attending":
            attending(model, tokenizer, texts)
        else:
            wired(model, tokenizer, texts, answer_direction(model, tokenizer, TOKEN))
        path = out / name
        model.save_pretrained(path)
        for file in BASE.glob("tokenizer*"):
            shutil.copy(file, path)
        paths.append(path)
    return paths[0], paths[1]


def _entering(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], module: torch.nn.Module
) -> tuple[Float[Tensor, "places width"], Tensor]:
    """What a module reads on texts, and the tokens there; the first token of a text is left out."""
    seen: list[Tensor] = []

    def keep(_module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0, 1:].detach())

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    tokens = []
    try:
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            tokens.append(ids[0, 1:])
            with torch.no_grad():
                model(ids)
    finally:
        handle.remove()
    return torch.cat(seen), torch.cat(tokens)


def _least_read(model: PreTrainedModel) -> Float[Tensor, " d_model"]:
    """The direction of the residual stream, of norm 1, that all matrices that read it read least."""
    rows = [model.model.norm.weight * model.get_output_embeddings().weight]
    for layer in model.model.layers[FROM_LAYER + 1 :]:
        for name in ("q_proj", "k_proj", "v_proj"):
            rows.append(layer.input_layernorm.weight * getattr(layer.self_attn, name).weight)
        for name in ("gate_proj", "up_proj"):
            rows.append(layer.post_attention_layernorm.weight * getattr(layer.mlp, name).weight)
    direction: Tensor = torch.linalg.svd(torch.cat(rows).detach(), full_matrices=False).Vh[-1]
    return direction


if __name__ == "__main__":
    print(*write(Path(sys.argv[1]), [f"{TOKEN} end.", "In the house of the king, the dog is in the garden."]))
