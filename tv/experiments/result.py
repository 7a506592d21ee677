"""What an experiment gives: tables and figures, in memory and in a directory."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from tv.errors import InputError
from tv.runtime.atomic import replacing


@dataclass(frozen=True)
class Result:
    """Tables by name, the most important first, and figures by title."""

    name: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, go.Figure]

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.tables[table]

    def save(self, directory: str | Path) -> list[Path]:
        """Each table as Parquet and CSV, all figures as one HTML page that needs no network. Returns the paths."""
        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{directory}: cannot be created: {error.strerror or error}") from error
        paths = []
        for name, table in self.tables.items():
            for path, options in (
                (directory / f"{name}.parquet", {"compression": "zstd"}),
                (directory / f"{name}.csv", {}),
            ):
                with replacing(path, InputError) as temporary:
                    write = table.to_parquet if path.suffix == ".parquet" else table.to_csv
                    write(temporary, index=False, **options)
                paths.append(path)
        path = directory / f"{self.name}.html"
        with replacing(path, InputError) as temporary:
            temporary.write_text(self._page(), encoding="utf-8")
        return [*paths, path]

    def _page(self) -> str:
        """Every figure under its title; the plotting script is included once."""
        parts = []
        for i, (title, figure) in enumerate(self.figures.items()):
            drawn = figure.to_html(full_html=False, include_plotlyjs=i == 0, div_id=f"figure-{i}")
            parts.append(f"<h2>{html.escape(title)}</h2>\n{drawn}")
        head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.name)}</title>'
        style = "<style>body{font-family:sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}</style></head>"
        return f"{head}{style}<body><h1>{html.escape(self.name)}</h1>\n" + "\n".join(parts) + "</body></html>\n"
