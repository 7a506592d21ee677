"""Files of prompts as prompt sets, as far as their columns and rows say how they are to be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tv.errors import PromptError
from tv.prompts.columns import TARGETS, columns_of, named
from tv.prompts.files import Prompt, PromptSet, read_prompts
from tv.prompts.logs.reading import is_log_file
from tv.prompts.sets import Key
from tv.prompts.tables import column_names

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
#: Names under which other keys are published. A column is used where its values can be what the key says.
_OTHERS: Mapping[Key, tuple[str, ...]] = {
    "id": ("id", "idx", "uid", "prompt_id", "question_id", "example_id"),
    "domain": ("domain", "category", "subject", "topic", "task"),
    "foil": ("foil", "rejected", "wrong", "wrong_answer", "incorrect", "incorrect_answer", "distractor"),
}
#: Columns of texts that are said to somebody.
_ASKED = ("question", "instruction", "query", "problem")


@dataclass(frozen=True)
class Found:
    """A file, how it can be read, and what it holds then."""

    chosen: PromptSet
    prompts: list[Prompt]
    joined: str | None  # the column that the reader puts after the text
    named_text: str  # the column of the text
    turns: bool  # rows have messages in place of a text

    @property
    def is_asked(self) -> bool:
        """Whether the texts look like what is said to an assistant, and not like the beginning of a text."""
        if self.turns or self.named_text.casefold() in _ASKED:
            return True
        follow = [prompt.target for prompt in self.prompts if prompt.target is not None]
        continued = 2 * sum(target.startswith(" ") for target in follow) > len(follow)
        return not continued and 2 * sum(one.text.rstrip().endswith("?") for one in self.prompts) > len(self.prompts)

    @property
    def runs_together(self) -> bool:
        """Whether most targets would continue the last word of their text."""
        follow = [one for one in self.prompts if one.target is not None]
        return 2 * sum(one.runs_together for one in follow) > len(follow)


def files_of(paths: Iterable[str | Path]) -> list[Path]:
    """The files, and those in the folders; a folder of an evaluation's logs is one.

    Raises PromptError for a path that is no file of prompts, and for a folder without any.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.glob("*") if file.suffix.casefold() in ENDINGS) if path.is_dir() else []
        if not path.exists():
            raise PromptError(f"{path}: no such prompt file; prompts are {_ENDINGS} files, or a folder of them")
        if is_log_file(path) or path.suffix.casefold() in ENDINGS:
            files.append(path)
        elif inside:
            files += inside
        else:
            what = "a folder without files of prompts" if path.is_dir() else "no file of prompts"
            raise PromptError(f"{path}: {what}; save prompts as {_ENDINGS}, with a header or names for the columns")
    return list(dict.fromkeys(files))  # a file that is named twice is read once


_ENDINGS = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


def found(file: Path, settings: Mapping[str, Any]) -> Found:
    """How a file is read. Settings of the user's stand.

    Raises PromptError in one line where its columns do not say which holds the text, or a row cannot be used.
    """
    names = column_names(PromptSet(file=file))
    own = dict(settings.get("columns", {}))
    turns = "messages" in own or (
        "text" not in {*names, *own} and any(n in names for n in ("messages", "conversations"))
    )
    chat = settings.get("chat", True if turns else None)
    bare = PromptSet.model_validate({"file": file, **settings, "chat": chat})
    columns = columns_of(bare, names)
    guessed = {key: name for key, name in columns.of.items() if name != key and name in names}
    targets = named(TARGETS, names)
    if not turns and "target" not in {*guessed, *names, *own} and len(targets) == 1:
        guessed["target"] = targets[0]
    if columns.joined:  # the reader's own rule, which a column of the text would switch off
        guessed = {}
    chosen, prompts = _read(bare, guessed)
    taken = {*columns.of.values(), *guessed.values(), *own}
    for key, known in _OTHERS.items():
        names_left = [name for name in named(known, names) if name not in taken]
        if key not in {*names, *guessed, *own} and names_left:
            try:
                more, read = _read(bare, guessed | {key: names_left[0]})
            except PromptError:  # its values are none of that key
                continue
            if key != "domain" or 2 * len({prompt.domain for prompt in read}) <= len(read):
                guessed, chosen, prompts = guessed | {key: names_left[0]}, more, read
    text = "messages" if turns else columns.of["text"]
    return Found(chosen, prompts, columns.joined, text, turns)


def _read(chosen: PromptSet, columns: Mapping[str, str]) -> tuple[PromptSet, list[Prompt]]:
    with_columns = chosen.model_copy(update={"columns": {**columns, **chosen.columns}})
    return with_columns, read_prompts([with_columns])


def one_line(found_sets: Sequence[Found]) -> str:
    """How many prompts, in which domains, with what."""
    prompts = [prompt for one in found_sets for prompt in one.prompts]
    targets, foils = (sum(getattr(one, key) is not None for one in prompts) for key in ("target", "foil"))
    domains = list(dict.fromkeys(prompt.domain for prompt in prompts))
    shown = ", ".join(domains[:6]) + f" and {len(domains) - 6} more" * (len(domains) > 6)
    count = "1 prompt" if len(prompts) == 1 else f"{len(prompts):,} prompts"
    return f"{count} ({shown}), {targets:,} with a target, {foils:,} with a foil"
