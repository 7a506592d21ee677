"""The study's page, out of its tables: `python -m studies.real_models.page` writes docs/study.md and its figures."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from studies.real_models import figures
from studies.real_models.answers import activations, claims, moving, program, weights
from studies.real_models.answers.shown import Tables, markdown
from studies.real_models.models import SOURCES
from studies.real_models.predicting import MEASURES
from studies.real_models.tables import COMMITTED, load
from studies.real_models.training import RANK, RATES, WINDOW

PAGE = Path(__file__).parents[2] / "docs" / "study.md"
#: Figures, from the page.
IMAGES = "images/study"


def page(tables: Tables) -> str:
    """The page as Markdown: its prose is the template's, every number the tables'.

    Raises:
        KeyError: where a table is missing: a stage was not done.
    """
    # Markdown, not HTML; and what is read are the study's own tables.
    rooms = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return rooms.get_template("study.md.j2").render(
        tables=tables,
        weights=weights,
        activations=activations,
        claims=claims,
        moving=moving,
        program=program,
        markdown=markdown,
        sources=SOURCES,
        names=list(dict.fromkeys(tables["weights"].model)),
        fine_tunes=_fine_tunes(tables),
        training={"window": WINDOW, "rates": RATES, "rank": RANK},
        steps=int(tables["training"].step.max()),
        n_measures=len(MEASURES),
        images=IMAGES,
    )


def _fine_tunes(tables: Tables) -> str:
    """Which models were tuned on which domains; those that were on the same ones together."""
    tuned = moving.losses(tables).groupby("model", sort=False)["tuned on"].agg(", ".join)
    models = tuned.index.to_series().groupby(tuned, sort=False).agg(" and ".join)
    return ", and ".join(f"{names} on {domains}" for domains, names in models.items())


def main() -> None:
    """Write the page and its figures."""
    tables = load(COMMITTED)
    PAGE.write_text(page(tables), encoding="utf-8")
    figures.draw(tables, PAGE.parent / IMAGES)


if __name__ == "__main__":
    main()
