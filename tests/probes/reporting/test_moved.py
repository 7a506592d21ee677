"""Which matrices moved, in sentences."""

import pandas as pd

from probes.reporting.moved import matrices, weights_sentences


def _weights(rows: list[tuple[int, str, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["layer", "module", "relative_norm", "noise_share"])


def test_that_nothing_moved_is_said() -> None:
    weights = _weights([(0, "q", 0.0, float("nan"))])
    assert weights_sentences(weights, 2) == ["No matrix moved: both checkpoints hold the same weights."]


def test_gains_that_moved_alone_are_not_nothing() -> None:
    """Behaviour may follow them: checkpoints whose gains differ do not hold the same weights."""
    weights = _weights([(0, "q", 0.0, float("nan")), (0, "attn_norm", 0.1, 0.0), (2, "final_norm", 0.3, 0.0)])
    said = ["No matrix moved, only gains of norms or biases (2), most final_norm (‖T‖/‖W‖ = 0.300)."]
    assert weights_sentences(weights, 2) == said


def test_weights_name_the_largest_move_and_leave_gains_out() -> None:
    weights = _weights([(0, "q", 0.1, 0.2), (1, "q", 0.3, 0.01), (1, "attn_norm", 0.9, 0.0), (2, "unembed", 0.2, 0.0)])
    text = " ".join(weights_sentences(weights, 2))
    assert "q of layer 1 (‖T‖/‖W‖ = 0.300), the median over 3 matrices 0.200" in text
    assert "layer 1 most (0.300) and layer 0 least (0.100)" in text and "at most 20 %" in text
    assert "Trained" not in text  # all of it was


def test_what_was_trained_is_said_of_a_lora() -> None:
    """q and v of two layers: the median, the least and the share of rounding are those of what moved."""
    still = ("k", "o", "gate", "up", "down")
    rows = [(layer, name, 0.0, float("nan")) for layer in range(2) for name in still]
    rows += [(0, "v", 0.1, 0.3), (0, "q", 0.2, 0.1), (1, "v", 0.3, 0.1), (1, "q", 0.4, 0.1)]
    rows += [(-1, "embed", 0.0, float("nan")), (0, "attn_norm", 0.5, 0.0)]
    sentences = weights_sentences(_weights(rows), 2)
    assert sentences[0] == "Trained: q, v; not moved: k, o, gate, up, down, embed."
    assert "the median over 4 matrices that moved 0.250" in sentences[1]
    assert "q moved most (0.300 on average) and v least (0.200)" in sentences[2] and "at most 30 %" in sentences[3]


def test_layers_that_were_left_out_are_counted() -> None:
    rows = [(0, "q", 0.0, 0.0), (1, "q", 0.1, 0.0), (2, "q", 0.2, 0.0), (0, "down", 0.3, 0.0)]
    assert weights_sentences(_weights(rows), 3)[0] == "Trained: q (in 2 of 3 layers), down; no other matrix moved."


def test_biases_are_no_matrices() -> None:
    """Their cosine with T is wide by chance, and their move is not one of the matrices that a median is over."""
    rows = [(0, "q", 0.1, 0.0), (0, "q_bias", 0.9, 0.0), (0, "attn_norm_bias", 0.5, 0.0)]
    assert list(matrices(_weights(rows)).module) == ["q"]
    assert "the median over 1 matrices 0.100" in " ".join(weights_sentences(_weights(rows), 2))


def test_experts_are_matrices_too() -> None:
    """Of a mixture whose experts alone moved it is not said that both checkpoints hold the same weights."""
    rows = [(0, "q", 0.0, 0.0), (0, "gate", 0.1, 0.0), (0, "gate", 0.3, 0.0), (0, "up", 0.2, 0.0), (0, "up", 0.0, 0.0)]
    text = " ".join(weights_sentences(_weights(rows).assign(expert=[-1, 0, 1, 0, 1]), 2))
    assert text.startswith("Trained: gate, up (1 of 2 matrices); not moved: q.")
    assert "expert 1's gate of layer 0 (‖T‖/‖W‖ = 0.300), the median over 3 matrices that moved 0.200" in text


def _others(*rows: tuple[int, str, str, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["layer", "module", "kind", "delta_norm", "relative_norm"])
    return frame.assign(noise_share=0.0)


def test_a_vision_tower_that_moved_alone_is_named() -> None:
    still = (0, "q", "linear", 0.0, 0.0)
    weights = _others(still, (-1, "vision_tower", "group", 0.3, 0.05), (-1, "projector", "group", 0.0, 0.0))
    said = ["No matrix of the language model moved, only vision_tower (‖T‖/‖W‖ = 0.0500)."]
    assert weights_sentences(weights, 2) == said and list(matrices(weights).module) == ["q"]


def test_sinks_that_moved_beside_matrices_are_named() -> None:
    rows = [(layer, "sinks", "vector", 0.1, 0.2 + layer) for layer in range(2)]
    rows += [(0, "q", "linear", 0.1, 0.3), (1, "q", "linear", 0.0, 0.0), (-1, "mtp", "group", 0.1, 0.01)]
    text = " ".join(weights_sentences(_others(*rows), 2))
    assert (
        "Besides the matrices, these moved: sinks (2 layers) and mtp, most sinks of layer 1 (‖T‖/‖W‖ = 1.20)." in text
    )
    assert "the median over 1 matrices that moved 0.300" in text


def test_a_bias_that_was_zero_moved() -> None:
    """Its relative norm is 0, for W is 0."""
    weights = _others((0, "q", "linear", 0.0, 0.0), (0, "q_bias", "bias", 0.2, 0.0))
    assert weights_sentences(weights, 2)[0].startswith("No matrix moved, only gains of norms or biases (1)")
