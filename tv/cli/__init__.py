"""The `tv` command, and what both commands do about bad input."""

from __future__ import annotations

import sys
import warnings

import typer
from typer.exceptions import Abort, TyperException

from tv.cli.align import align
from tv.cli.apply import apply
from tv.cli.cosine import cosine
from tv.cli.evaluate import evaluate
from tv.cli.experiment import app as experiment
from tv.cli.extract import extract
from tv.cli.geometry import geometry
from tv.cli.info import info
from tv.cli.lora import lora_export, lora_init
from tv.cli.path import path
from tv.cli.quality import quality
from tv.cli.ssa import ssa
from tv.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Where fine-tuning moved the weights, and what of it is more than matrix shape.",
)
for command in (info, extract, ssa, geometry, cosine, path, align, apply, lora_export, lora_init, evaluate, quality):
    app.command()(command)
app.add_typer(experiment, name="experiment")


def entry(app: typer.Typer, name: str, interrupted: str = "") -> None:
    """Run a command: bad input is one line on stderr and exit status 2, without a traceback.

    `interrupted` says what becomes of work that Ctrl-C stops.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    code = 0
    try:
        code = typer.main.get_command(app).main(prog_name=name, standalone_mode=False) or 0
    except (InputError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        if message.strip():  # empty where the help was shown for want of arguments
            print("error:", " ".join(message.split()), file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, Abort):
        code = 130
    if code == 130:  # typer may have caught it first
        print(f"error: interrupted{interrupted}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the `tv` command."""
    entry(app, "tv")
