"""What the program said beforehand, and what its runs and the study's stages took."""

from __future__ import annotations

import pandas as pd

from studies.real_models.answers.shown import Tables, spread
from studies.real_models.models import SOURCES


def estimates(tables: Tables) -> pd.DataFrame:
    """What the program said beforehand against what its runs took; a stage's peak memory is that of its process."""
    took = tables["forecasts"].dropna(subset="cpu_estimate")  # not what was resumed
    peak = tables["stages"].set_index("stage").memory.reindex(took.stage).to_numpy()
    return pd.DataFrame(
        {
            "run": took.stage,
            "CPU seconds": took.cpu.round().astype(int),
            "said before": took.cpu_estimate.round().astype(int),
            "ratio": (took.cpu / took.cpu_estimate).round(2),
            "peak memory, MiB": peak.round().astype(int),
            "said": took.memory_estimate.round().astype(int),
        }
    )


def ways(tables: Tables) -> pd.DataFrame:
    """One capture in several ways: what it took, what was said, and how far its tables are from the plain one's."""
    apart = tables["program_tables"]
    rows = []
    for one in tables["program"].itertuples():
        of = apart[(apart.way == one.way) & (apart.model == one.model)]
        lacking = of.table[of.largest_difference.isna()].tolist()  # tables that this way does not make
        gap = of.largest_difference.max()
        same = "equal" if not (gap or of.others_unequal.sum()) else f"differ by {gap:.2g} at most"
        same += f"; without {', '.join(lacking)}" if lacking else ""
        rows.append(
            {
                "model": one.model,
                "way": one.way,
                "CPU seconds": round(one.cpu),
                "of them the run": round(one.cpu_run),
                "said before": "–" if pd.isna(one.cpu_estimate) else round(one.cpu_estimate),
                "peak memory, MiB": round(one.memory),
                "disk, MiB (said)": f"{one.disk:.1f} ({one.disk_estimate:.1f})",
                "tables": "–" if of.empty else same,
            }
        )
    return pd.DataFrame(rows)


def stages(tables: Tables) -> pd.DataFrame:
    """What the study's stages took against its own estimate: a row a kind of stage and model."""
    done = tables["stages"]
    done = done.assign(
        kind=done.stage.str.partition("-")[0], model=done.stage.str.extract(f"-({'|'.join(SOURCES)})")[0]
    )
    rows = []
    for (model, kind), group in done.groupby(["model", "kind"], sort=False):
        rows.append(
            {
                "model": model,
                "stages": f"{kind} ({len(group)})",
                "CPU seconds": round(group.cpu.sum()),
                "said before": round(group.cpu_estimate.sum()),
                "ratio": spread(group.cpu / group.cpu_estimate, 2),
                "on the clock, s": round(group.wall.sum()),
                "peak memory, MiB (said)": f"{group.memory.max():.0f} ({group.memory_estimate.max():.0f})",
                "disk, MiB (said)": f"{group.disk.sum():.0f} ({group.disk_estimate.sum():.0f})",
            }
        )
    return pd.DataFrame(rows)
