"""What the page shows of the tables: made-up ones, whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from studies.real_models.answers import activations, claims, moving, program, shown


def test_numbers_are_written_alike() -> None:
    assert shown.signed(-0.0004) == shown.signed(0.0) == "0.000"
    assert shown.signed(-1.5, 1) == "−1.5"
    assert shown.interval(-0.5, -1.0, np.nan, 1) == "−0.5"
    assert shown.interval(-0.5, -1.0, 0.25, 2) == "−0.50 [−1.00, 0.25]"
    assert shown.spread(pd.Series([1.0]), 1) == "1.0"
    assert shown.spread(pd.Series([-1.0, 0.0, 3.0]), 1) == "0.0 (−1.0 to 3.0)"
    assert shown.markdown(pd.DataFrame({"a": ["x|y"], "b": [1]})) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


def test_losses_are_means_over_seeds_and_intervals_over_texts() -> None:
    tunes = ["one-medical-full-0", "one-medical-full-1", "one-medical-lora-0", "one-medical-lora-0-random"]
    frames = [
        pd.DataFrame({"id": range(12), "cluster": range(12), "tokens": 5, "before": 3.0, "after": after}).assign(
            tune=tune
        )
        for tune, after in zip(tunes, (np.linspace(1, 2, 12), np.linspace(2, 3, 12), 2.5, 99.0), strict=True)
    ]
    (row,) = moving.losses({"held_out": pd.concat(frames, ignore_index=True)}).to_dict("records")
    assert row["model"] == "one" and row["texts"] == 12 and row["before"] == "3.000"
    assert row["change, full"].startswith("−1.000 [−1.2")
    assert row["change, LoRA"] == "−0.500"  # all texts alike: no interval, and not the frozen one's 99


def test_transfer_says_what_is_clear() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            **{
                "model": "one",
                "method": "full",
                "seed": seed,
                "domain": "medical",
                "text": text,
                "id": i,
                "cluster": i,
            },
            "change": mean + rng.normal(0, 0.1),
        }
        for text, mean in (("medical", -1.0), ("law", 0.0))
        for seed in (0, 1)
        for i in range(12)
    ]
    (row,) = moving.transfer({"transfer": pd.DataFrame(rows)}).to_dict("records")
    assert row["medical"].startswith("−") and row["law"].startswith("(")


def test_the_quality_of_what_is_written_is_compared_item_by_item() -> None:
    rows = [
        {
            **{"model": "one", "domain": "medical", "metric": "words", "vector": vector, "scale": scale},
            **{"item_id": i, "cluster": i, "value": i + shift + 0.01 * i * shift},
        }
        for vector, scale, shift in (("T", 0.0, 0), ("T", 1.0, -5), ("random", 1.0, 0.5))
        for i in range(12)
    ]
    (row,) = moving.quality({"quality": pd.DataFrame(rows)}).to_dict("records")
    assert row["− 1 T"].startswith("−5.275 [") and row["− 1 random"].startswith("0.527 [")
    assert "− 1.5 T" not in row


def test_orders_tell_a_fine_tune_from_a_model_written_differently() -> None:
    rows = [
        {
            "model": "one",
            "written": written,
            "domain": "medical",
            "seed": 0,
            "moved": moved,
            "rescaled": 0.0,
            "explained": share,
        }
        for written, moved, share in (("as trained", 0.0, 0.0), ("differently", 1.0, 0.97))
    ]
    found = moving.orders({"align": pd.DataFrame(rows)}).set_index("written")
    column = "most that any layer moves, %"
    assert found[column].to_dict() == {"as trained": "0.0", "differently": "100.0"}


def test_a_measure_that_differs_by_type_alone_orders_nothing_within_types() -> None:
    """SSA as its null makes it: high in one type, which also has the larger causes."""
    rng = np.random.default_rng(0)
    links = pd.DataFrame(
        {"model": "one", "of": "medical", "module": np.repeat(["down", "gate"], 40), "path": -rng.random(80)}
    ).assign(ssa_left=rng.random(80), kappa_left=0.1, ssa_right=0.5, kappa_right=0.5, relative_norm=0.0)
    links.loc[links.module == "down", ["path", "ssa_left"]] += [-2.0, 2.0]
    links["relative_norm"] = -links.path
    found = activations.predictors({"links": links}).set_index("measure")
    assert (
        float(found["ρ over all matrices"]["ssa_left"]) > 0.6 > 0.22 > abs(_number(found["ρ within types"]["ssa_left"]))
    )
    assert found["ρ within types"]["relative_norm"] == "1.00" and found["chance"]["ssa_left"] == "± 0.22"


def _number(said: str) -> float:
    return float(said.replace("−", "-"))


def test_runs_and_stages_stand_beside_what_was_said() -> None:
    took = pd.DataFrame({"stage": ["read", "again"], "cpu": [50.0, 1.0], "cpu_estimate": [40.0, np.nan]})
    stages = pd.DataFrame({"stage": ["again", "read"], "memory": [1.0, 900.0]})
    (row,) = program.estimates({"forecasts": took.assign(memory_estimate=800.0), "stages": stages}).to_dict("records")
    assert row["ratio"] == 1.25 and (row["peak memory, MiB"], row["said"]) == (900, 800)
    ways = pd.DataFrame(
        {
            **{"model": "one", "way": ["plain", "killed and resumed"], "cpu": 10.0, "cpu_run": 8.0, "memory": 900.0},
            **{"cpu_estimate": [7.0, np.nan], "disk": 1.0, "disk_estimate": 1.1},
        }
    )
    apart = pd.DataFrame(
        {
            **{"model": "one", "way": "killed and resumed", "table": ["gates", "answers"]},
            **{"largest_difference": [0.0, np.nan], "others_unequal": [0.0, np.nan]},
        }
    )
    shown_ways = program.ways({"program": ways, "program_tables": apart})
    assert shown_ways.tables.tolist() == ["–", "equal; without answers"]
    other = program.ways({"program": ways, "program_tables": apart.assign(largest_difference=[0.5, np.nan])})
    assert other.tables.tolist() == ["–", "differ by 0.5 at most; without answers"]
    assert shown_ways["said before"].tolist() == [7, "–"]


@pytest.mark.parametrize("better", [True, False])
def test_a_claim_says_what_was_found(better: bool) -> None:
    returned = pd.DataFrame(
        {
            **{"model": "one", "domain": "medical", "task": "ifeval", "vector": ["T", "random"]},
            **{"value_0": 0.75, "value_1": [0.25 if better else 0.75, 0.75]},
        }
    )
    asked = pd.DataFrame({"model": ["one"], "task": ["ifeval"], "n": [8]})
    said = claims._needed({"returned": returned, "negation": asked}, "one")
    assert said.startswith("of 8 instructions")
    assert ("6 → 2" in said) == better and "(random: 6)" in said
