"""One row of a prompt set: the keys it has, what each may hold, and its first mistake in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tv.errors import PromptError

#: The longest text; a tokenizer needs many times its size in memory.
MOST_CHARACTERS = 2_000_000

Following = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]  # after a text: may be white space
Words = Annotated[str, Field(pattern=r"\S", max_length=MOST_CHARACTERS)]

_MISTAKES = {
    "missing": "is missing",
    "string_type": "is {kind}, not a string; put it in quotes",
    "string_too_short": "is blank",
    "string_pattern_mismatch": "is blank",
    "string_unicode": "holds half of a surrogate pair, which is no character",
    "string_too_long": "has {size:,} characters, more than any model reads; cut it",
}


class Row(BaseModel):
    """The values of a row's keys; other columns are ignored."""

    model_config = ConfigDict(strict=True)

    id: Words
    text: Words
    target: Following | None = None
    foil: Following | None = None
    domain: Words | None = None
    continuation: Following | None = None
    cluster: Words | None = None

    @model_validator(mode="after")
    def _foil_competes(self) -> Row:
        if self.foil is not None and self.target is None:
            raise ValueError("a foil without a target; add the target that it competes with")
        if self.foil is not None and self.foil == self.target:
            raise ValueError("foil and target are the same; the foil is another answer")
        return self


def read_row(values: Mapping[str, Any], place: str, columns: Mapping[str, str], hint: str = "") -> Row:
    """The row that these values make.

    Args:
        values: By key. None means no value.
        place: The file and line, or row, for messages.
        columns: The column that holds each key.
        hint: Added to the message where the text is missing.

    Raises:
        PromptError: The first value that cannot be used.

    Examples:
        >>> read_row({"id": "a", "text": "Two and two make", "target": " four"}, "p.jsonl: line 1", {}).target
        ' four'
    """
    try:
        return Row.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        if not mistake["loc"]:
            raise PromptError(f"{place}: {str(mistake['msg']).removeprefix('Value error, ')}") from None
        key, said = str(mistake["loc"][0]), _said(mistake)
        said += f" (column {columns[key]!r})" if columns.get(key, key) != key else ""
        if mistake["type"] == "missing" and key == "text":
            said += hint
        raise PromptError(f"{place}: {key} {said}") from None


def _said(mistake: Mapping[str, Any]) -> str:
    given = mistake["input"]
    if given is None:
        return _MISTAKES["missing"]
    said = _MISTAKES.get(mistake["type"], str(mistake["msg"]))
    return said.format(kind=type(given).__name__, size=len(given) if isinstance(given, str) else 0)
