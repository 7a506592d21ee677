"""The options of a function, read off its signature: what suite, Python and both command lines accept for it.

An option is a keyword with a default. `Annotated[float, Field(gt=0, le=1, description="…")]` gives its bounds and
its help, as in pydantic.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from tv.errors import InputError, choices, meant


def options_of(function: Callable[..., Any]) -> dict[str, FieldInfo]:
    """The options of `function` by name: type, default, bounds and description.

    Examples:
        >>> def trim(values: list[float], *, density: float = 0.2) -> None: ...
        >>> {name: option.default for name, option in options_of(trim).items()}
        {'density': 0.2}
    """
    return dict(_model(function).model_fields)


def validated(function: Callable[..., Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`given` with the types that `function` takes; options not given are left to its defaults.

    Args:
        function: What the options are for.
        given: Options by name.
        what: How messages call the function: "method 'ties'".

    Raises:
        InputError: An option that it does not take, or a value outside its bounds.

    Examples:
        >>> def trim(values: list[float], *, density: float = 0.2) -> None: ...
        >>> validated(trim, {"density": 1}, "method 'trim'")
        {'density': 1.0}
    """
    model = _model(function)
    odd = next((name for name in given if name not in model.model_fields), None)
    if odd is not None:
        raise InputError(f"{what} has no option {odd!r}{choices(odd, model.model_fields)}")
    try:
        return model.model_validate(dict(given)).model_dump(include=set(given))
    except ValidationError as error:
        mistake = error.errors()[0]
        name = ".".join(map(str, mistake["loc"]))
        said = str(mistake["msg"]).replace("Input should", "should")
        expected = re.findall("'([^']*)'", mistake.get("ctx", {}).get("expected", ""))
        raise InputError(f"{what}: {name} {mistake['input']!r} {said}{meant(mistake['input'], expected)}") from None


def _model(function: Callable[..., Any]) -> type[BaseModel]:
    given = inspect.signature(function).parameters
    defaults = {name: one.default for name, one in given.items() if one.default is not inspect.Parameter.empty}
    # The types of its other parameters may not be imported before it runs.
    declared = {name: hint for name, hint in inspect.get_annotations(function).items() if name in defaults}
    options = SimpleNamespace(__annotations__=declared, __wrapped__=function)
    hints = get_type_hints(options, include_extras=True)
    fields: dict[str, Any] = {name: (hints.get(name, Any), default) for name, default in defaults.items()}
    return create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
