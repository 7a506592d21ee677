"""The items of a log as a file of prompts."""

from __future__ import annotations

import json
from pathlib import Path

from tv.errors import InputError
from tv.prompts.files import Prompts, PromptSet, read_prompts
from tv.runtime.atomic import replacing

_KEYS = ("id", "text", "target", "foil", "domain", "cluster")


def prompts_of_log(log: str | Path, *, cluster: str | None = None) -> Prompts:
    """The items of a log as prompts, each once: what the model was given, the right answer, a wrong one.

    A prompt set that names the log reads the same, with `chat` as conversations.

    Args:
        log: As in `tv.read_logs`.
        cluster: As there.

    Raises:
        PromptError: As there.

    Examples:
        >>> prompts = prompts_of_log("data/logs/lm-eval/base")
        >>> prompts[0].target, prompts[0].domain
        (' blue', 'general_choice')
    """
    return read_prompts([PromptSet(file=Path(log), columns={} if cluster is None else {"cluster": cluster})])


def write_prompts(prompts: Prompts, path: Path) -> None:
    """Write prompts as JSON lines, whole or not at all."""
    rows = ({key: getattr(prompt, key) for key in _KEYS if getattr(prompt, key) is not None} for prompt in prompts)
    with replacing(path, InputError) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def check_prompts_out(path: Path | None) -> None:
    """Raise InputError where no file of prompts can be written to `path`."""
    if path is not None and path.suffix != ".jsonl":
        raise InputError(f"{path}: unknown ending {path.suffix!r}; prompts are written as .jsonl")
    if path is not None and not path.resolve().parent.is_dir():
        raise InputError(f"{path}: its directory does not exist; create it first")
