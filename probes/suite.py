"""The suite: one YAML file that says which models, prompts and measurements make a run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from probes.errors import SuiteError
from probes.measures.declared import MEASURES
from probes.methods import METHODS, all_methods, all_options
from tv.arithmetic.controls import CONTROLS
from tv.errors import choices, meant
from tv.prompts.files import Chat, PromptSet
from tv.prompts.metric import METRICS
from tv.prompts.sets import Positions
from tv.runtime.yaml_file import YamlFile, read_yaml

#: The default measurements of a suite. Others register themselves: `probes.measures.declared`.
MEASUREMENTS = ("gates", "contributions", "changes", "ledger", "lens", "behaviour")
SiteName = Literal["gate", "attn_out", "mlp_out", "head_out"]
VectorSite = Literal[
    "embed_out",
    "resid_pre",
    "head_out",
    "attn_out",
    "resid_mid",
    "gate",
    "gate_act",
    "up",
    "mlp_out",
    "resid_post",
    "resid_final",
]
Granularity = Literal["component", "module", "head", "kv_head", "expert", "neuron"]
#: Metrics of effects that compare the two models; the others are those of `tv.prompts.metric`.
COMPARING = ("kl", "first_divergence")
#: A metric that is a finding of a discovery, `discovered:PART/READING`.
FOUND_METRIC = re.compile(r"discovered:\S.*")
#: A user-defined metric, `module:function`.
OWN_METRIC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
Backend = Literal["torch", "transformer_lens", "nnsight"]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_MODEL_NAME = re.compile(r"[A-Za-z0-9._-]+")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator(
        *("methods", "granularity", "controls", "parts", "measure", "sites", "keep", "epsilons", "amplify"),
        check_fields=False,
    )
    @classmethod
    def _no_twins(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        twins = [value for i, value in enumerate(values) if value in values[:i]]
        if twins:
            raise ValueError(f"{twins[0]} is listed twice; name it once")
        return values


def metric_names() -> tuple[str, ...]:
    """Every metric of effects that has a name."""
    return (*METRICS, *COMPARING)


def _method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"no method {name!r}{choices(name, (method.name for method in all_methods()))}")
    return name


def _control(name: str) -> str:
    if name not in CONTROLS:
        raise ValueError(f"no control {name!r}{choices(name, CONTROLS)}")
    return name


class Attribution(_Part):
    """Which causal effects to measure, on which behaviour metric, and what proves them.

    The options of the chosen methods are attributes too, by name.
    """

    model_config = ConfigDict(extra="allow")  # checked by `_with_options`

    methods: tuple[Annotated[str, AfterValidator(_method)], ...] = Field(("path", "graft", "revert"), min_length=1)
    metric: str = "logit_diff"
    discovered: str | None = None  # the run whose finding is the metric, where the suite's own discovery is not meant
    granularity: tuple[Granularity, ...] = Field(("component",), min_length=1)  # path gives all of them at once
    controls: tuple[Annotated[str, AfterValidator(_control)], ...] = ("random",)
    curves: bool = True
    curve_rankings: Literal["leading", "all"] = "leading"  # those of the methods and of ‖T‖; all: SSA and the like too
    curve_prompts: Count = 32  # at most, drawn from all: a curve takes one forward per point
    curve_points: Count = 8  # values of n between 1 and all; every n where there are no more
    curve_draws: Count = 5  # random orders

    @field_validator("metric")
    @classmethod
    def _named(cls, metric: str) -> str:
        if metric in metric_names() or FOUND_METRIC.fullmatch(metric) or OWN_METRIC.fullmatch(metric):
            return metric
        raise ValueError(
            f"no metric {metric!r}{choices(metric, metric_names())}, module:function for a function of your own, and "
            "discovered:PART/READING for what a discovery found"
        )

    @field_validator("discovered")
    @classmethod
    def _of_a_finding(cls, run: str | None, info: ValidationInfo) -> str | None:
        if run is not None and not FOUND_METRIC.fullmatch(info.data.get("metric", "")):
            raise ValueError("names the run of a metric discovered:PART/READING; set that metric, or leave this out")
        return run

    @field_validator("methods")
    @classmethod
    def _with_effects(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not any(METHODS[name].effects for name in methods):
            without = " and ".join(methods)
            raise ValueError(f"{without} has a table of its own and gives units no effects; add graft, revert or path")
        return methods

    @model_validator(mode="wrap")
    @classmethod
    def _with_options(cls, given: Any, validate: ModelWrapValidatorHandler[Attribution]) -> Attribution:
        """Options are checked with the other keys; those of methods that are not asked for are kept if given."""
        if cls is not Attribution or not isinstance(given, Mapping):
            return validate(given)
        whole = dict(_with_every_option().model_validate(given))
        asked = {option for name in whole["methods"] for option in METHODS[name].options}
        kept = {*cls.model_fields, *asked, *given}
        return validate({name: value for name, value in whole.items() if name in kept})

    @model_validator(mode="after")
    def _without_contradiction(self) -> Attribution:
        for name in self.methods:
            able = METHODS[name].granularities
            if able and not {*self.granularity, "all"} & {*able}:
                raise ValueError(
                    f"{name} has no effects by {' or '.join(self.granularity)}; add {' or '.join(able)} to granularity"
                )
        for method in all_methods():
            if method.require is not None and all(hasattr(self, option) for option in method.options):
                method.require(**method.chosen(self))
        return self


class _Strict(Attribution):
    model_config = ConfigDict(extra="forbid")


def _with_every_option() -> type[Attribution]:
    """`Attribution` with the options of every method as fields."""
    options: dict[str, Any] = {name: (option.annotation, option) for name, option in all_options().items()}
    return create_model("Attribution", __base__=_Strict, **options)


class Discovery(_Part):
    """What is looked for where nobody says what to look for."""

    parts: tuple[str, ...] = ()  # of `probes.discovery.parts`, or all; without it the usual ones
    controls: tuple[Literal["random", "shuffled", "spectrum", "sham"], ...] = ("random", "shuffled", "sham")
    draws: Count = 20  # of shams, and of all other controls together
    null_texts: Count = 64  # texts, at most, on which controls are read
    longest: Count = 32  # tokens of a text that are read
    tokens: Count | None = None  # of all texts that are read, which the seed draws; default: every text
    amplify: tuple[str, ...] = ("*",)  # globs of parameters' names: what is written where T is doubled in these alone


class Generation(_Part):
    """Over which continuation of every prompt's text both models are captured."""

    model_config = ConfigDict(populate_by_name=True)

    tokens: Count | None = None  # at most; a given continuation may be taken whole
    source: Literal["base", "tuned", "given"] = Field("base", alias="from")

    @model_validator(mode="after")
    def _bounded(self) -> Generation:
        if self.tokens is None and self.source != "given":
            raise ValueError("how many tokens? Add tokens: N")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, int | str | None]:
        return {"tokens": self.tokens, "from": self.source}


class Suite(_Part):
    """A validated suite. Paths are absolute; a model that is not a local path stays a hub id.

    `probes.load_suite` reads one; docs/prompts.md and docs/attribution.md describe their keys.

    Attributes:
        name: The run's name.
        base: The pretrained model: a path or a hub id.
        tuned: One or more tuned models, by name.
        prompts: The prompt sets.
        positions: The places at which activations are measured: "all", "last" (of the text), "target" or "generated"
            (those that predict its tokens), "from user" (from the user's first token on that not all prompts of its set
            share) or "from answer" (from the place that predicts the answer's first token on); a file says
            `{from: user}`. By default "after template" where a prompt set has `chat`: "from user" of conversations and
            "all" of plain texts; else "all".
        measure: What is measured: gates, contributions, changes, ledger, lens, behaviour, and measurements of other
            packages.
        sites: What gates, contributions and changes read: gate, attn_out, mlp_out, head_out.
        ledger_positions: The places of the ledger and the logit lens.
        lens_places: At most so many of them are read through the lens in each prompt: where the answer begins, and
            others evenly spaced. "all": every one.
        generate: Over which continuation of every text both models are read; None: over the target.
        answer_pattern: A regular expression. Its first group, or its whole match, in what each model writes after the
            text is compared with that in the target: the metric `final_answer`. None: it is not measured.
        align: Undo first what of T is a reparametrisation: the tuned models are read, and run, as the base is written.
        tokenizer: "base": the base's encodes the prompts for all. "own": each model reads what its own tokenizer makes
            of them, and only answers are compared.
        edit_distance: The places whose gate patterns are compared by edit distance: "target", "all" or "none".
        noise_floor: With gates or behaviour, compare the base with itself in another precision.
        keep: Sites of which the vectors themselves are stored, as float16.
        attribute: Which causal effects to measure, and on which metric; None: none.
        backend: The capture backend: torch, transformer_lens or nnsight.
        discover: What is looked for in the prompts' texts without any target, see docs/discovery.md; None: nothing.
        batch_size: Prompts in one forward pass, at most.
        epsilons: The levels of SSA's tail rule.
        bootstrap: Resamples for each interval that has no formula, and shuffles of the link.
        seed: Of everything drawn.

    Examples:
        >>> suite = probes.load_suite("data/suites/demo.yaml")
        >>> suite.positions, suite.attribute.methods
        ('all', ('path', 'graft', 'revert'))
    """

    name: str
    base: str = Field(min_length=1)
    tuned: dict[str, Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    prompts: tuple[PromptSet, ...] = Field(min_length=1)
    positions: Positions = Field(None, validate_default=True)
    measure: tuple[str, ...] = Field(MEASUREMENTS, min_length=1)
    sites: tuple[SiteName, ...] = Field(("gate", "attn_out", "mlp_out", "head_out"), min_length=1)
    ledger_positions: Positions = "target"
    lens_places: Count | Literal["all"] = 3
    generate: Generation | None = Field(None, validate_default=True)
    answer_pattern: str | None = None
    align: bool = Field(False, strict=True)
    tokenizer: Literal["base", "own"] = "base"
    edit_distance: Literal["target", "all", "none"] = "target"
    noise_floor: bool = True  # the base against itself in another precision
    keep: tuple[VectorSite, ...] = ()  # sites of which the vectors themselves are stored, as float16
    attribute: Attribution | None = None
    discover: Discovery | None = None
    backend: Backend = "torch"  # for capture
    batch_size: Count = 16
    epsilons: tuple[Epsilon, ...] = Field((0.01, 0.05, 0.1), min_length=1)
    bootstrap: Count = 1000
    seed: int = Field(0, strict=True, ge=0, lt=2**32)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not name.strip() or not name.isprintable() or re.search(r"[/\\]", name):
            raise ValueError("must be a printable, non-blank name without slashes")
        return name

    @field_validator("positions", "ledger_positions", mode="before")
    @classmethod
    def _as_word(cls, value: object, info: ValidationInfo) -> object:
        """`{from: user}` as the word of a manifest. By default places begin after what a chat template puts first."""
        if value is None and info.field_name == "positions":
            return "after template" if any(chosen.chat for chosen in info.data.get("prompts", ())) else "all"
        if not isinstance(value, Mapping):
            return value
        if set(value) != {"from"} or value["from"] not in ("user", "answer", "all"):
            raise ValueError(
                "should be all, last, target, generated, after template, or {from: user}, {from: answer} or {from: all}"
            )
        return "all" if value["from"] == "all" else f"from {value['from']}"

    @field_validator("measure")
    @classmethod
    def _measurable(cls, measure: tuple[str, ...]) -> tuple[str, ...]:
        others = [name for name in measure if name not in MEASUREMENTS]
        if odd := [name for name in others if name not in MEASURES]:
            raise ValueError(f"no measurement {odd[0]!r}{choices(odd[0], (*MEASUREMENTS, *MEASURES))}")
        return measure

    @field_validator("tuned")
    @classmethod
    def _model_names(cls, tuned: dict[str, str]) -> dict[str, str]:
        for name in tuned:
            if name == "base":
                raise ValueError("the name 'base' is taken by the base model; choose another")
            if not _MODEL_NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may have letters, digits, '.', '_' and '-' only")
        return tuned

    @model_validator(mode="after")
    def _paired_places(self) -> Suite:
        others = self.attribute or self.generate or self.keep or self.answer_pattern or self.discover
        if self.tokenizer == "own" and (self.measure != ("behaviour",) or others):
            raise ValueError(
                "tokenizer: own gives the two models other positions, so that only their answers are compared; set "
                "measure: [behaviour] and leave out attribute, discover, generate, keep and answer_pattern"
            )
        if self.answer_pattern and "behaviour" not in self.measure:
            raise ValueError("answer_pattern is of behaviour; add behaviour to measure, or leave it out")
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @field_validator("generate")
    @classmethod
    def _one_text(cls, generate: Generation | None, info: ValidationInfo) -> Generation | None:
        chosen = {info.data.get("positions"), info.data.get("ledger_positions")}
        if generate is None and "generated" in chosen:
            raise ValueError("positions: generated has no tokens to stand for; add generate: {tokens: N, from: base}")
        if generate and generate.source == "tuned" and len(info.data.get("tuned", ())) > 1:
            raise ValueError(
                "from: tuned with several tuned models gives each of them other tokens, and the base no single run; "
                "use from: base, or one suite for each"
            )
        return generate


_PARTS: dict[str, type[BaseModel]] = {
    "prompts": PromptSet,
    "chat": Chat,
    "generate": Generation,
    "discover": Discovery,
}


def load_suite(
    source: str | Path | Mapping[str, Any],
    *,
    base: str | Path | None = None,
    tuned: str | Path | Mapping[str, str | Path] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Suite:
    """Read and validate a suite.

    Values given here win over the suite's. Relative paths in a file are relative to that file, and all others to
    the working directory.

    Args:
        source: A YAML file's path, or the same as a mapping.
        base: The pretrained model.
        tuned: The tuned models by name, or one path, which is named after its directory.
        settings: Other keys; a mapping wins key by key, and one for `prompts` does in every set.

    Returns:
        The suite.

    Raises:
        SuiteError: One line with the first mistake and its place.

    Examples:
        >>> suite = probes.load_suite("data/suites/demo.yaml", tuned="data/models/law", settings={"bootstrap": 50})
        >>> list(suite.tuned), suite.bootstrap
        (['law'], 50)
    """
    if isinstance(source, Mapping):
        where, data, file, directory = "suite", dict(source), None, Path.cwd()
    else:
        path = Path(source)
        where, directory = str(source), path.absolute().parent
        file = _read(path)
        data = file.data
    keys, given = _resolved(data, directory), _resolved(dict(settings or {}), Path.cwd())
    for name, value in given.items():
        if isinstance(value, Mapping) and isinstance(keys.get(name), Mapping):
            given[name] = {**keys[name], **value}
        if name == "prompts" and isinstance(value, Mapping) and isinstance(keys.get(name), list | tuple):
            given[name] = [{**entry, **value} if isinstance(entry, Mapping) else entry for entry in keys[name]]
    if base is not None:
        given["base"] = _locate(str(base), Path.cwd())
    if tuned is not None:
        named = tuned if isinstance(tuned, Mapping) else {name_of(tuned): tuned}
        given["tuned"] = {name: _locate(str(path), Path.cwd()) for name, path in named.items()}
    try:
        suite = Suite.model_validate(keys | given)
    except ValidationError as error:
        raise SuiteError(_sentence(error, where, file, frozenset(given))) from None
    if file is not None:
        _require_files(suite, where, file, frozenset(given))
    return suite


def with_attribution(suite: Mapping[str, Any], given: Mapping[str, Any]) -> Suite:
    """A run's suite with other settings in its section `attribute`; those that are None stay as they are.

    Raises:
        SuiteError: An unknown method, metric or setting.

    Examples:
        >>> suite = load_suite("data/suites/demo.yaml").model_dump(mode="json")
        >>> with_attribution(suite, {"methods": "path", "metric": None}).attribute.methods
        ('path',)
    """
    section = dict(suite.get("attribute") or {})
    for name, value in given.items():
        if value is not None:
            section[name] = [value] if name in _LISTS and isinstance(value, str) else value
    return load_suite({**suite, "attribute": section})


#: The settings of `attribute` that hold several values.
_LISTS = ("methods", "granularity", "controls")


def discovery_of(settings: Mapping[str, Any], seed: Any) -> Discovery:
    """The section `discover` of a suite, checked without models and prompts.

    Raises:
        SuiteError: An unknown setting, or a value that it cannot have.

    Examples:
        >>> discovery_of({"draws": 16}, seed=0).draws
        16
    """
    return load_suite({**_STAND_IN, "discover": dict(settings), "seed": seed}).discover or Discovery()


#: What a suite needs, where its own models and prompts are not known yet.
_STAND_IN = {"name": "discovery", "base": "base", "tuned": {"tuned": "tuned"}, "prompts": [{"file": "texts.jsonl"}]}


def _read(path: Path) -> YamlFile:
    """The file, whose data are a mapping."""
    file = read_yaml(path, SuiteError, "suite")
    if file is None or file.data is None:
        raise SuiteError(f"{path}: the suite is empty; it needs name, base, tuned and prompts")
    if not isinstance(file.data, dict):
        raise SuiteError(f"{path}: a suite is a mapping of keys to values, not a {type(file.data).__name__}")
    return file


def _resolved(data: dict[str, Any], directory: Path) -> dict[str, Any]:
    """`data` with its paths absolute, wherever they have the right form; validation reports the rest."""
    data = dict(data)
    if isinstance(data.get("base"), str):
        data["base"] = _locate(data["base"], directory)
    if isinstance(data.get("tuned"), Mapping):
        data["tuned"] = {k: _locate(v, directory) if isinstance(v, str) else v for k, v in data["tuned"].items()}
    if isinstance(section := data.get("attribute"), Mapping) and isinstance(section.get("discovered"), str):
        data["attribute"] = {**section, "discovered": _absolute(section["discovered"], directory)}
    if isinstance(data.get("prompts"), list | tuple):
        data["prompts"] = [_resolved_set(entry, directory) for entry in data["prompts"]]
    return data


def _resolved_set(entry: Any, directory: Path) -> Any:
    if isinstance(entry, Mapping) and isinstance(entry.get("file"), str | Path) and str(entry["file"]):
        return {**entry, "file": _absolute(str(entry["file"]), directory)}
    if isinstance(entry, Mapping) and isinstance(entry.get("dataset"), str):
        return {**entry, "dataset": _locate(entry["dataset"], directory)}
    return entry


def _locate(model: str, directory: Path) -> str:
    """The absolute path of a local model; a hub id unchanged."""
    local = _absolute(model, directory)
    return local if model and (os.path.exists(local) or not _HUB_ID.fullmatch(model)) else model


def _absolute(path: str, directory: Path) -> str:
    return os.path.abspath(directory / os.path.expanduser(path))


def name_of(tuned: str | Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(os.path.abspath(tuned)).name).strip("-")
    return "tuned" if name in ("", "base") else name


def _require_files(suite: Suite, where: str, file: YamlFile, given: frozenset[str]) -> None:
    models = {("base",): suite.base} | {("tuned", name): path for name, path in suite.tuned.items()}
    files = {("prompts", i, "file"): entry.file for i, entry in enumerate(suite.prompts) if entry.file}
    local = {("prompts", i, "dataset"): entry.dataset for i, entry in enumerate(suite.prompts) if entry.dataset}
    names = {"file": "prompt file", "dataset": "dataset directory"}
    for loc, path in (models | files | local).items():
        if os.path.isabs(path) and not os.path.exists(path):
            what = names.get(str(loc[-1]), "checkpoint directory") if loc[0] == "prompts" else "checkpoint directory"
            raise SuiteError(f"{_place(where, file, loc, given)}: no such {what}: {path}")


def _sentence(error: ValidationError, where: str, file: YamlFile | None, given: frozenset[str]) -> str:
    """The first mistake by line, and how many more there are."""
    errors = error.errors()
    locs = {item["loc"] for item in errors}
    outer = {loc[:i] for loc in locs for i in range(len(loc))}  # a list with a wrong item is also reported as too short
    mistakes = [item for item in errors if item["loc"] not in outer]
    mistakes.sort(key=lambda item: (_line(file, item["loc"], given) or 10**9, item["type"] != "extra_forbidden"))
    first = mistakes[0]
    loc = tuple(part for part in first["loc"] if part != "[key]")
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{_place(where, file, loc, given)}: {_complaint(first, loc)}{more}"


def _complaint(mistake: Mapping[str, Any], loc: tuple[int | str, ...]) -> str:
    if mistake["type"] == "extra_forbidden":
        within = next((part for part in reversed(loc[:-1]) if isinstance(part, str)), "")
        part = _with_every_option() if within == "attribute" else _PARTS.get(within, Suite)
        return f"unknown key{choices(loc[-1], (field.alias or name for name, field in part.model_fields.items()))}"
    if mistake["type"] == "missing":
        return "missing; add this key"
    message = str(mistake["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    message = re.sub("tuple|Tuple", "list", message).replace("dictionary", "mapping")
    message = re.sub(r" or instance of \w+", "", message)
    if mistake["type"] == "value_error":
        return message
    shown = repr(mistake["input"])
    expected = re.findall("'([^']*)'", mistake.get("ctx", {}).get("expected", ""))
    return f"{message}, not {shown if len(shown) <= 60 else shown[:57] + '…'}{meant(mistake['input'], expected)}"


def _place(where: str, file: YamlFile | None, loc: tuple[int | str, ...], given: frozenset[str]) -> str:
    line = _line(file, loc, given)
    dotted = ".".join(map(str, loc)) or "suite"
    return f"{where}: line {line}: {dotted}" if line else f"{where}: {dotted}"


def _line(file: YamlFile | None, loc: tuple[int | str, ...], given: frozenset[str]) -> int | None:
    """The line of the value at `loc`, from 1; none for a suite without a file or a given value."""
    return None if file is None or (loc and loc[0] in given) else file.line(loc)
