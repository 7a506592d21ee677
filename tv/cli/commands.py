"""What the commands of `tv` and of `probes` have in common: two options, error handling and exit statuses."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from tv.cli import terminal
from tv.errors import InputError, first_line, meant
from tv.runtime.memory import RELIEF, is_out_of_memory
from tv.runtime.progress import VARIABLE
from tv.runtime.quiet import report_no_use

DONE, BUG, BAD_INPUT, FAILED, CANNOT_TELL, INTERRUPTED = 0, 1, 2, 3, 4, 130

Quiet = Annotated[bool, typer.Option("--quiet", help="Print only results and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print progress, results and errors as JSON, one object per line.")]


def command(work: Callable[..., int | None]) -> Callable[..., int | None]:
    """`work` with the options that every command takes; `entry` has read them already when it begins.

    What `work` returns is the exit status: nothing for DONE, FAILED or CANNOT_TELL from a command that judges.
    """

    @wraps(work)
    def perform(context: typer.Context, quiet: bool, json: bool, **given: Any) -> int | None:
        _hush()
        status = work(**given)
        terminal.end(context.command_path, status or DONE)
        return status

    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        inspect.Parameter("json", keyword, default=False, annotation=Json),
        inspect.Parameter("context", keyword, annotation=typer.Context),
    ]
    signature = inspect.signature(work, eval_str=True)
    named = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    perform.__signature__ = signature.replace(parameters=[*named, *common])  # type: ignore[attr-defined]
    return perform


def entry(app: typer.Typer, name: str, resumes: Mapping[str, tuple[str, ...]]) -> None:
    """Run a command: bad input is one line on stderr and exit status 2, without a traceback.

    `resumes` has the commands that resume after Ctrl-C when they are rerun, each with the beginnings of the arguments
    of which it needs one for that; "" is any.
    """
    report_no_use()
    # Read here, so that errors in the command line are reported in the form that it asks for.
    as_json = "--json" in sys.argv
    terminal.begin(quiet="--quiet" in sys.argv, json=as_json)
    status = DONE
    try:
        status = typer.main.get_command(app).main(prog_name=name, standalone_mode=False) or DONE
    except (InputError, TyperException) as error:
        status = BAD_INPUT
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        if similar := getattr(error, "possibilities", None):  # of an unknown option
            message = _no_option(error.option_name, similar)  # type: ignore[union-attr]
        if wrong := _NO_CHOICE.fullmatch(message):
            close = meant(wrong["given"], re.findall("'([^']*)'", wrong["known"]))
            message = f"{wrong['where']}: {wrong['given']!r} is not one of {wrong['known']}{close}"
        if message.strip():  # empty where missing arguments made it show the help
            terminal.fail(" ".join(message.split()), status)
    except (KeyboardInterrupt, Abort):
        status = INTERRUPTED
    except Exception as error:
        short = is_out_of_memory(error)
        if not as_json and not short:
            raise
        status = BAD_INPUT if short else BUG
        terminal.fail(f"out of memory ({first_line(error)}); {RELIEF}" if short else traceback.format_exc(), status)
    if status == INTERRUPTED:  # typer may have caught it first
        asked = sys.argv[1:]
        resumes_here = asked and asked[0] in resumes and any(one.startswith(resumes[asked[0]]) for one in asked)
        again = "; rerun the same command to resume" if resumes_here else ""
        terminal.fail(f"interrupted{again}", status)
    sys.exit(status)


#: What typer says of a word that is none of an option's choices.
_NO_CHOICE = re.compile(
    r"Invalid value for '(?P<where>[^']*)': (?:Value error, )?'(?P<given>.*)' is not one of (?P<known>.*)\."
)


def _no_option(name: str, similar: Iterable[str]) -> str:
    """What is said of an unknown option. The dashes that every option begins with make none similar."""
    alike = [one for one in similar if meant(name.strip("-"), [one.strip("-")])]
    return f"no option {name}{meant(name, alike)}"


def _hush() -> None:
    """Silence libraries' progress bars and warnings; the command itself says what a person should know."""
    os.environ[VARIABLE] = "off"  # the command shows its own
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "huggingface_hub" in sys.modules:  # it has read its variable already
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    warnings.filterwarnings("ignore")
