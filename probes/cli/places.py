"""Options of commands that read states of a run: where, of which models, and beside how many nulls."""

from typing import Annotated

import typer

Site = Annotated[str, typer.Option(help="resid_pre, resid_mid, resid_post, attn_out or mlp_out.")]
Position = Annotated[
    str, typer.Option(help="Which places of a prompt, averaged: last (of the text), all, target, from user, ….")
]
Layer = Annotated[list[int] | None, typer.Option(help="A layer, from 0; repeatable. [every layer]", show_default=False)]
Tuned = Annotated[
    list[str] | None, typer.Option("--tuned", help="A tuned model of the run; repeatable. [all]", show_default=False)
]
Draws = Annotated[int, typer.Option(min=0, help="Draws of base + random T, a null of every difference.")]
