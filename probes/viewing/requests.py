"""What a page can ask: every request is checked here before anything is loaded or computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from probes.errors import RunError

#: Tokens of a prompt and its answer together, at most: both models' predictions after each are held at once.
MOST_TOKENS = 2048
#: Tokens that an answer may have.
MOST_ANSWER = 200

#: λ of each component, by its readable name: `mlp 3`, `embed`.
Scales = dict[str, Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)]]
#: Base, tuned, or base + Σ λT.
ModelName = Literal["base", "tuned", "mixed"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Open(_Request):
    """Which runs there are, and their tuned models."""

    do: Literal["open"]


class _OfPair(_Request):
    run: Annotated[int, Field(ge=0)]  # index among the runs that are open
    tuned: str
    pane: Annotated[str, Field(max_length=64)] = ""  # of its requests of one kind, only the newest is answered


class Load(_OfPair):
    """Load a pair, and say what it has: components, prompts, how prompts are written."""

    do: Literal["load"]


class Answer(_OfPair):
    """Both models' greedy answers to a prompt, and how far their predictions lie apart after every token."""

    do: Literal["answer"]
    prompt: Annotated[str, Field(max_length=200_000)]
    form: str = ""  # how the prompt is written, one of those that `Load` names; "" is the first
    tokens: Annotated[int, Field(ge=1, le=MOST_ANSWER)] = 24
    follow: ModelName = "tuned"  # whose answer both models are read over
    scales: Scales = {}


class Token(_OfPair):
    """What every model makes of the text up to one token."""

    do: Literal["token"]
    ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MOST_TOKENS)]
    pos: Annotated[int, Field(ge=0)]
    scales: Scales = {}


Request = Annotated[Open | Load | Answer | Token, Field(discriminator="do")]
_REQUEST: TypeAdapter[Open | Load | Answer | Token] = TypeAdapter(Request)


def read_request(request: Mapping[str, Any]) -> Open | Load | Answer | Token:
    """A request as one of the classes above. Raises RunError, naming the first value that is not as it should be."""
    try:
        return _REQUEST.validate_python(request)
    except ValidationError as error:
        mistake = error.errors()[0]
        place = ".".join(str(part) for part in mistake["loc"][1:]) or "request"
        raise RunError(f"{place}: {mistake['msg']}") from None
