"""Arguments and options that several commands take."""

from typing import Annotated

import typer

RunPath = Annotated[str, typer.Argument(help="The directory or URL of a run.", metavar="RUN")]
