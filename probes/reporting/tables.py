"""The report's tables and the points of the link scatter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from probes.attribution.units import component_name
from probes.linking import ACTIVATION_MEASURES, CAUSAL_MEASURES, WEIGHT_MEASURES
from probes.reporting.evidence import Evidence
from probes.reporting.figures import plain
from probes.reporting.link_sentences import stands_out
from probes.reporting.words import MEASURES, METRICS, change_form, interval, metric_name, number, p_value, value_form

#: Activation measures in the order they are shown: the direct term comes first.
SHOWN_MEASURES = (
    *("direct_norm", "direct_share", *CAUSAL_MEASURES),
    *(name for name in ACTIVATION_MEASURES if not name.startswith("direct")),
)


def behaviour_rows(behaviour: pd.DataFrame) -> list[dict[str, str]]:
    """Domain, metric, n, both models and the paired change, as text."""
    rows = []
    for row in behaviour.to_dict("records"):
        value, change = value_form(row["metric"]), change_form(row["metric"])
        forms = {"base": value, "tuned": value, "change": change}
        ends = {name: interval(row[f"{name}_lo"], row[f"{name}_hi"], form) for name, form in forms.items()}
        counts = f"; {row['gained']:.0f} gained, {row['lost']:.0f} lost" if pd.notna(row["gained"]) else ""
        rows.append(
            {
                "domain": row["domain"],
                "metric": metric_name(row["metric"]),
                "unit": METRICS.get(row["metric"], ("", "", None))[1],
                "n": str(row["n"]) if row["units"] == row["n"] else f"{row['n']} in {row['units']}",
                "base": value(row["base"]),
                "base_interval": ends["base"],
                "tuned": value(row["tuned"]),
                "tuned_interval": ends["tuned"],
                "change": change(row["change"]),
                "change_interval": ends["change"] + counts,
                "p": p_value(row["p_holm"]) if pd.notna(row["p_holm"]) else "",
                "floor": change(row["floor"]).removeprefix("+"),
                "said": row["said"],
            }
        )
    return rows


def correlation_rows(correlations: pd.DataFrame) -> dict[str, list[dict[str, str]]]:
    """Rank correlations by kind, the direct term first, each measure's strongest pair on top."""
    order = {name: i for i, name in enumerate(SHOWN_MEASURES)}
    ranked = correlations.dropna(subset=["rho"])
    ranked = ranked.assign(order=ranked.activation_measure.map(order).fillna(len(order)), size=ranked.rho.abs())
    ranked = ranked.assign(clear=stands_out(ranked))
    ranked = ranked.sort_values(["order", "size"], ascending=[True, False], kind="stable")
    return {
        f"{kind}s": [
            {
                "x": row.weight_measure,
                "y": row.activation_measure,
                "weight": MEASURES.get(row.weight_measure, row.weight_measure),
                "activation": MEASURES.get(row.activation_measure, row.activation_measure),
                "rho": number(row.rho, 2),
                "interval": interval(row.lo, row.hi),
                "null": interval(row.null_lo, row.null_hi),
                "p": number(row.p, 2),
                "p_family": number(row.p_family, 2),
                "mark": "clear" if row.clear else "",
                "n": str(row.n),
            }
            for row in rows.itertuples()
        ]
        for kind, rows in ranked.groupby("kind", sort=False)
    }


def link_points(evidence: Evidence) -> dict[str, Any]:
    """Points of the scatter, one column per measure, for modules and components; empty measures are left out."""
    link = evidence.link
    weight, other = (
        [n for n in names if n in link and link[n].notna().any()] for names in (WEIGHT_MEASURES, SHOWN_MEASURES)
    )
    points: dict[str, Any] = {"x": _named(weight), "y": _named(other), "kinds": {}}
    for kind, rows in link.groupby("kind"):
        groups = rows.module if kind == "module" else rows.component
        points["kinds"][str(kind)] = {
            "group": [str(group) for group in groups],
            "name": [_point_name(row) for row in rows.to_dict("records")],
            "values": {name: [plain(float(v)) for v in rows[name]] for name in [*weight, *other]},
        }
    return points


def _named(measures: list[str]) -> list[list[str]]:
    return [[name, MEASURES.get(name, name)] for name in measures]


def _point_name(row: Mapping[Any, Any]) -> str:
    if row["kind"] == "module":
        return f"{row['module']}, layer {row['layer']}"
    return component_name(row["layer"], row["component"])


def pair_rows(manifest: Mapping[str, Any], tuned: str) -> list[dict[str, str]]:
    """Both checkpoints: source (the end of a local path), size, stored type and short fingerprints."""
    rows = []
    for name in ("base", tuned):
        checkpoint = manifest.get("checkpoints", {}).get(name, {})
        fingerprint = checkpoint.get("fingerprint", {})
        fingerprint = fingerprint if isinstance(fingerprint, Mapping) else {"content": fingerprint}
        parts = Path(str(checkpoint.get("source", ""))).parts
        rows.append(
            {
                "model": name,
                "source": "…/" + "/".join(parts[-2:]) if len(parts) > 3 else "/".join(parts),
                "parameters": f"{fingerprint['parameters']:,}" if "parameters" in fingerprint else "–",
                "dtype": str(fingerprint.get("dtype", "–")),
                "structure": str(fingerprint.get("structure", "–"))[:12],
                "content": str(fingerprint.get("content", "–"))[:12],
            }
        )
    return rows
