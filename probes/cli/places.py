"""Options of commands that read states of a run: where, of which models, and beside how many nulls."""

from typing import Annotated, Literal

import typer

Site = Annotated[
    Literal["resid_post", "resid_pre", "resid_mid", "attn_out", "mlp_out"], typer.Option(help="Where states are read.")
]
Places = Annotated[
    Literal["last", "all", "target", "generated", "from answer", "from user", "after template"],
    typer.Option(help="At which places of a prompt, averaged; last is the text's."),
]
Layer = Annotated[list[int] | None, typer.Option(help="A layer, from 0; repeatable. [every layer]", show_default=False)]
Tuned = Annotated[
    list[str] | None, typer.Option("--tuned", help="A tuned model of the run; repeatable. [all]", show_default=False)
]
Draws = Annotated[int, typer.Option(min=0, help="Draws of base + random T, a null of every difference.")]
