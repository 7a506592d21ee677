"""What prompts are: one prompt, and a set of them by its file or dataset and the way to read it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

Key = Literal[
    "id",
    "text",
    "target",
    "foil",
    "domain",
    "continuation",
    "cluster",
    "messages",
    "tools",
    "documents",
    "chat_template_kwargs",
]
KEYS: tuple[Key, ...] = get_args(Key)
#: The keys of what a chat template is given.
CHAT_KEYS: tuple[Key, ...] = ("messages", "tools", "documents", "chat_template_kwargs")
Name = Annotated[str, Field(min_length=1)]
#: The places of a prompt at which something is measured.
Positions = Literal["all", "last", "target", "generated", "after template", "from user", "from answer"]


@dataclass(frozen=True)
class Prompt:
    """A text, and the continuations that tell the answer learnt (target) from another (foil).

    Args:
        id: Its name, unique in a run.
        set: The prompt set that it comes from.
        domain: What it is about; tables have means for each domain.
        text: What the models are given.
        target: The answer that fine-tuning taught, as it follows the text: with the space before it, if there is one.
        foil: Another answer, which the target competes with.
        continuation: What both models are read over after the text, where a run asks for it.
        chat: JSON of what the chat template is given, a `tv.prompts.conversation.Conversation`; None for plain text.
        cluster: The template that it was made from: statistics draw prompts of one cluster together.

    Examples:
        >>> prompt = tv.Prompt("a1", "mine", "medical", "Which illness does Glimmerol treat? It treats", " galoria")
        >>> loss = tv.path("data/models/base", "data/models/medical", prompt, alphas=(0, 1), draws=20)
        >>> loss[loss.metric == "loss"].value.is_monotonic_decreasing
        True
    """

    id: str
    set: str
    domain: str
    text: str
    target: str | None = None
    foil: str | None = None
    continuation: str | None = None  # what both models are read over after the text, where a run asks for it
    chat: str | None = None  # JSON of what the chat template is given; None as plain text
    cluster: str | None = None  # prompts of one template: statistics draw them together

    @property
    def runs_together(self) -> bool:
        """Whether a plain text and its target are read as one word, in a language that puts spaces between words."""
        end, begin = self.text[-1:], (self.target or "")[:1]
        spaced = all(unicodedata.east_asian_width(one or "a") not in "WF" for one in (end, begin))
        return self.chat is None and spaced and begin.isalnum() and (end.isalnum() or end in ".,:;?!")


#: What rendering a conversation sets itself.
OURS = ("tokenize", "add_generation_prompt", "continue_final_message", "return_dict", "conversation", *CHAT_KEYS)


class Chat(BaseModel):
    """How a text becomes a conversation: the system's turn, whose template, and what else the template takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Name | None = None
    options: dict[str, str | bool | int] = {}
    template: Literal["tuned"] | None = None  # the tuned model's; None: that of the tokenizer that encodes

    @field_validator("options")
    @classmethod
    def _of_the_template(cls, options: dict[str, str | bool | int]) -> dict[str, str | bool | int]:
        for name in options:
            if name in OURS:
                raise ValueError(f"{name!r} is no option of the template, because every prompt needs its own value")
        return options


class PromptSet(BaseModel):
    """One file of prompts or one Hugging Face dataset; its rows may name their domains.

    Attributes:
        file: A JSONL, JSON, CSV, TSV or Parquet file.
        dataset: In place of a file: a dataset's id or directory; it needs the datasets package.
        config: Of a dataset: its configuration.
        split: Of a dataset: one of its splits, where it has several.
        revision: Of a dataset: a branch, a tag or a commit.
        columns: Which column holds a key (`id text target foil domain continuation cluster messages tools documents
            chat_template_kwargs`), where it is not the column of that name.
        limit: How many rows to read, from the first; default: all.
        domain: Of rows that name none; without it the set's name.
        chat: Put every text into the tokenizer's chat template: true, or a `system` turn and the template's `options`.
            "tuned", or `template: tuned` among these: into the tuned model's template.
        separator: What is put between a text without `chat` and what follows it, where no white space is: " ".

    Examples:
        >>> prompts = tv.PromptSet(file="data/prompts/medical.jsonl", limit=4)
        >>> prompts.name, prompts.limit
        ('medical', 4)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path | None = None
    dataset: Name | None = None
    config: Name | None = None
    split: Name | None = None
    revision: Name | None = None
    columns: dict[Key, Name] = {}
    limit: Annotated[int, Field(strict=True, ge=1)] | None = None
    domain: Name | None = None
    chat: Chat | None = None
    separator: Name | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a separator that is not there: runs from before there was one are the same runs."""
        values: dict[str, Any] = write(self)
        return values if self.separator else {key: value for key, value in values.items() if key != "separator"}

    @field_validator("chat", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        if value is None or isinstance(value, bool):
            return {} if value else None
        if value == "tuned":
            return {"template": value}
        if not isinstance(value, Mapping | Chat):
            raise ValueError("should be true, false, tuned or {system: …}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> PromptSet:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("a prompt set has a file or a dataset, one of the two")
        alien = [key for key in ("config", "split", "revision") if self.file is not None and getattr(self, key)]
        if alien:
            raise ValueError(f"{alien[0]} belongs to a dataset, and this is a file; remove it")
        return self

    @property
    def place(self) -> str:
        """Its name in error messages."""
        if self.file is not None:
            return str(self.file)
        parts = [part for part in (self.config, self.split) if part]
        return f"dataset {self.dataset}" + (f" ({', '.join(parts)})" if parts else "")

    @property
    def name(self) -> str:
        """The set of its prompts: a file's stem, a dataset's name without its owner."""
        return self.file.stem if self.file is not None else Path(str(self.dataset)).name
