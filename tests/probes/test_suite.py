"""A suite says what to run, and every mistake in it is one line with its place."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from probes.errors import SuiteError
from probes.suite import Suite, load_suite

GOOD = """\
name: demo
base: models/base
tuned: {medical: models/medical, code: some-org/code-model}
prompts:
  - {file: prompts.jsonl, domain: medical}
positions: target
attribute: {methods: [graft], metric: target_nll}
seed: 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "medical"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "prompts.jsonl").write_text("{}")
    return tmp_path


def _write(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_suite_is_read_with_its_paths_beside_the_file(folder: Path) -> None:
    suite = load_suite(_write(folder, GOOD))
    assert suite.base == str(folder / "models" / "base")
    assert suite.tuned == {"medical": str(folder / "models" / "medical"), "code": "some-org/code-model"}
    assert suite.prompts[0].file == folder / "prompts.jsonl" and suite.prompts[0].domain == "medical"
    assert suite.attribute is not None and suite.attribute.methods == ("graft",)
    assert (suite.positions, suite.ledger_positions, suite.edit_distance) == ("target", "target", "target")
    assert suite.measure == ("gates", "contributions", "changes", "ledger", "lens", "behaviour")
    assert (suite.batch_size, suite.bootstrap, suite.seed, suite.epsilons) == (16, 1000, 3, (0.01, 0.05, 0.1))


def test_a_dump_loads_back_the_same_even_without_the_prompt_files(folder: Path) -> None:
    suite = load_suite(_write(folder, GOOD))
    (folder / "prompts.jsonl").unlink()
    assert load_suite(suite.model_dump(mode="json")) == suite
    with pytest.raises(ValueError, match="frozen"):
        suite.seed = 4  # type: ignore[misc]


def test_overrides_win_and_a_single_tuned_model_is_named_after_its_directory(folder: Path) -> None:
    path = _write(folder, GOOD)
    other = folder / "my model (v2)"
    other.mkdir()
    suite = load_suite(path, base=other, tuned=other)
    assert suite.base == str(other) and suite.tuned == {"my-model-v2": str(other)}
    assert load_suite(path, tuned={"a": "org/one"}).tuned == {"a": "org/one"}
    assert load_suite(path, settings={"keep": ["resid_post", "attn_out"], "backend": "nnsight"}).keep == (
        "resid_post",
        "attn_out",
    )
    assert load_suite(path, tuned=folder / "models" / "base").tuned == {"tuned": str(folder / "models" / "base")}
    without = GOOD.replace("base: models/base\n", "").replace("tuned: {m", "# {m")
    assert load_suite(_write(folder, without), base=other, tuned="org/x-7b").tuned == {"x-7b": "org/x-7b"}


MISTAKES = {
    "unknown key": (
        GOOD.replace("file:", "fil:"),
        "line 5: prompts.0.fil: unknown key; did you mean 'file'? There are file, dataset, config, split, ",
    ),
    "unknown at top": (GOOD + "sed: 1\n", "line 9: sed: unknown key; did you mean 'seed'? There are name, base"),
    "missing": (GOOD.replace("name: demo\n", ""), "line 1: name: missing; add this key"),
    "choice": (
        GOOD.replace("target\n", "first\n", 1),
        "line 6: positions: should be 'all', 'last', 'target', 'generated', 'after template', 'from user' or "
        "'from answer', not 'first'",
    ),
    "method": (
        GOOD.replace("graft", "guess"),
        "line 7: attribute.methods.0: no method 'guess'; there are path, feature, graft, revert, ",
    ),
    "a method that knows nothing of the granularity": (
        GOOD.replace("[graft]", "[graft, patch], granularity: [module]"),
        "line 7: attribute: patch has no effects by module; add component or head",
    ),
    "depth alone": (GOOD.replace("graft", "depth"), "line 7: attribute.methods: depth has a table of its own"),
    "metric": (
        GOOD.replace("target_nll", "nonsense"),
        "line 7: attribute.metric: no metric 'nonsense'; there are target_nll, logit_diff, ",
    ),
    "nodes": (
        GOOD.replace("metric: target_nll", "nodes: 9, most_nodes: 8"),
        "line 7: attribute: most_nodes 8 is below nodes 9",
    ),
    "base taken": (GOOD.replace("medical:", "base:", 1), "line 3: tuned: the name 'base' is taken"),
    "bad name": (GOOD.replace("medical:", "'a/b':", 1), "line 3: tuned: the name 'a/b' may have letters"),
    "no tuned": (GOOD.replace("{medical: models/medical, code: some-org/code-model}", "{}"), "line 3: tuned: "),
    "boolean": (GOOD.replace("seed: 3", "seed: true"), "line 8: seed: should be a valid integer, not True"),
    "zero batch": (GOOD + "batch_size: 0\n", "line 9: batch_size: should be greater than or equal to 1, not 0"),
    "epsilon": (GOOD + "epsilons:\n- 0.05\n- 1.5\n", "line 11: epsilons.1: should be less than 1, not 1.5"),
    "not a number": (GOOD + "epsilons: [.nan]\n", "line 9: epsilons.0: "),
    "twice": (GOOD + "measure: [gates, gates]\n", "line 9: measure: gates is listed twice"),
    "same key": (GOOD + "name: again\n", "line 9: name: already given on line 1"),
    "no prompts": (
        GOOD.replace("  - {file: prompts.jsonl, domain: medical}\n", ""),
        "line 4: prompts: should be a valid list",
    ),
    "prompt file": (GOOD.replace("prompts.jsonl", "absent.jsonl"), "line 5: prompts.0.file: no such prompt file: "),
    "checkpoint": (GOOD.replace("models/base", "../models/base"), "line 2: base: no such checkpoint directory: "),
    "syntax": (GOOD + "x: [1, 2\n", "line 10: not valid YAML: "),
    "unhashable": ("? [a]\n: b\n", "not valid YAML: "),
    "tag": ("name: !!python/object/apply:os.system ['true']\n", "line 1: not valid YAML: "),
    "two documents": (GOOD + "---\nname: b\n", "not valid YAML: "),
    "list": ("- a\n- b\n", "a suite is a mapping"),
    "empty": ("# nothing\n", "the suite is empty"),
    "recursive": ("name: &a [*a]\n", "line 1: name: "),
    "source": (GOOD.replace("file: prompts.jsonl, ", ""), "line 5: prompts.0: a prompt set has a file or a dataset"),
    "two sources": (
        GOOD.replace("{file", "{dataset: a/b, file"),
        "line 5: prompts.0: a prompt set has a file or a dataset",
    ),
    "file's split": (GOOD.replace("{file", "{split: test, file"), "line 5: prompts.0: split belongs to a dataset"),
    "dataset": (
        GOOD.replace("file: prompts.jsonl", "dataset: ./quiz"),
        "prompts.0.dataset: no such dataset directory: ",
    ),
    "column": (
        GOOD.replace("{file", "{columns: {txt: q}, file"),
        "line 5: prompts.0.columns.txt: should be 'id', 'text', ",
    ),
    "limit": (
        GOOD.replace("{file", "{limit: 0, file"),
        "line 5: prompts.0.limit: should be greater than or equal to 1",
    ),
    "chat": (
        GOOD.replace("{file", "{chat: hi, file"),
        "line 5: prompts.0.chat: should be true, false, tuned or {system: …}",
    ),
    "chat key": (
        GOOD.replace("{file", "{chat: {sys: x}, file"),
        "line 5: prompts.0.chat.sys: unknown key; did you mean 'system'? There are system, options",
    ),
    "no tokens": (GOOD + "generate: {from: base}\n", "line 9: generate: how many tokens? Add tokens: N"),
    "discover key": (
        GOOD + "discover: {partz: all}\n",
        "line 9: discover.partz: unknown key; did you mean 'parts'? There are parts, ",
    ),
    "generate key": (
        GOOD + "generate: {token: 3}\n",
        "line 9: generate.token: unknown key; did you mean 'tokens'? There are tokens, from",
    ),
    "generator": (
        GOOD + "generate: {tokens: 3, from: me}\n",
        "line 9: generate.from: should be 'base', 'tuned' or 'given'",
    ),
    "generate number": (GOOD + "generate: 3\n", "line 9: generate: should be a valid mapping, not 3"),
    "one of several": (GOOD + "generate: {tokens: 3, from: tuned}\n", "line 9: generate: from: tuned with several"),
    "nothing generated": (
        GOOD.replace("positions: target", "positions: generated"),
        "generate: positions: generated has no tokens to stand for",
    ),
    "ledger of nothing": (GOOD + "ledger_positions: generated\n", "generate: positions: generated has no tokens"),
    "slash": (GOOD.replace("name: demo", "name: a/b"), "line 1: name: must be a printable"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(mistake: str, folder: Path) -> None:
    text, message = MISTAKES[mistake]
    path = _write(folder, text)
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and message in said and "\n" not in said


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no such suite file"):
        load_suite(tmp_path / "absent.yaml")
    with pytest.raises(SuiteError, match="cannot be read"):
        load_suite(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SuiteError, match="not UTF-8"):
        load_suite(tmp_path / "bytes.yaml")


def test_a_mistake_in_an_override_has_no_line(folder: Path) -> None:
    with pytest.raises(SuiteError, match=r"suite.yaml: tuned: the name 'base' is taken"):
        load_suite(_write(folder, GOOD), tuned={"base": "org/x"})
    with pytest.raises(SuiteError, match=r"suite.yaml: keep.0: .*'resid_pos'"):
        load_suite(_write(folder, GOOD), settings={"keep": ["resid_pos"]})


PROMPT_SETS = """\
  - {file: prompts.jsonl, columns: {text: question}, limit: 5, chat: true}
  - {dataset: org/quiz, config: main, split: test, revision: abc, chat: {system: Be brief., options: {thinking: false}}}
  - {dataset: quiz}
"""


def test_prompt_sets_and_generation(folder: Path) -> None:
    (folder / "quiz").mkdir()
    text = GOOD.replace("  - {file: prompts.jsonl, domain: medical}\n", PROMPT_SETS)
    text = text.replace("positions: target", "positions: generated")
    suite = load_suite(_write(folder, text + "generate: {tokens: 8, from: base}\n"))
    file, dataset, local = suite.prompts
    assert file.file == folder / "prompts.jsonl" and file.columns == {"text": "question"} and file.limit == 5
    assert file.chat is not None and file.chat.system is None
    assert (dataset.dataset, dataset.config, dataset.split, dataset.revision) == ("org/quiz", "main", "test", "abc")
    assert (
        dataset.chat is not None and dataset.chat.system == "Be brief." and dataset.chat.options == {"thinking": False}
    )
    assert local.dataset == str(folder / "quiz") and local.chat is None
    assert suite.generate is not None and (suite.generate.tokens, suite.generate.source) == (8, "base")
    assert load_suite(suite.model_dump(mode="json")) == suite


def test_generation_is_overridden_key_by_key(folder: Path) -> None:
    path = _write(folder, GOOD + "generate: {tokens: 8, from: base}\n")
    found = load_suite(path, settings={"generate": {"from": "given"}}).generate
    assert found is not None and (found.tokens, found.source) == (8, "given")
    found = load_suite(_write(folder, GOOD), settings={"generate": {"tokens": 3}}).generate
    assert found is not None and (found.tokens, found.source) == (3, "base")
    with pytest.raises(SuiteError, match=r"suite.yaml: generate: how many tokens"):
        load_suite(path, settings={"generate": {"from": "tuned"}})
    again = load_suite(path, settings={"generate": {"tokens": 8}}).model_dump(mode="json")
    assert again["generate"] == {"tokens": 8, "from": "base"}
    found = load_suite(again, settings={"generate": {"from": "given"}}).generate
    assert found is not None and (found.tokens, found.source) == (8, "given")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(key=st.sampled_from([*Suite.model_fields, "other"]), value=_JSON)
def test_whatever_stands_under_a_key_gives_a_suite_or_one_line(key: str, value: object) -> None:
    suite = yaml.safe_load(GOOD) | {key: value}
    try:
        load_suite(suite)
    except SuiteError as error:
        assert "\n" not in str(error) and str(error).startswith("suite: ")


def test_a_hub_id_may_pin_its_revision(folder: Path) -> None:
    suite = load_suite(_write(folder, GOOD), base="some-org/model@v1.0", tuned="some-org/tuned@0a1b2c")
    assert suite.base == "some-org/model@v1.0" and list(suite.tuned.values()) == ["some-org/tuned@0a1b2c"]


PLACES = {
    "from user": ({"from": "user"}, "from user"),
    "from the answer": ({"from": "answer"}, "from answer"),
    "from all": ({"from": "all"}, "all"),
    "a word": ("last", "last"),
    "as a manifest has it": ("from user", "from user"),
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("key", ["positions", "ledger_positions"])
def test_places_are_a_word_or_say_where_they_begin(key: str, case: str, folder: Path) -> None:
    given, expected = PLACES[case]
    suite = load_suite(_write(folder, GOOD), settings={key: given})
    assert getattr(suite, key) == expected
    assert load_suite(suite.model_dump(mode="json")) == suite


@pytest.mark.parametrize("wrong", [{"from": "tuned"}, {"from": ["user"]}, {"start": "user"}, {}, {"from": None}])
def test_places_that_begin_nowhere(wrong: object, folder: Path) -> None:
    with pytest.raises(
        SuiteError, match=r"positions: should be all, last, target, generated, after template, or \{from: user\}"
    ):
        load_suite(_write(folder, GOOD), settings={"positions": wrong})


def test_places_begin_after_a_chat_template_by_default(folder: Path) -> None:
    without = GOOD.replace("positions: target\n", "")
    assert without != GOOD and load_suite(_write(folder, without)).positions == "all"
    entry = load_suite(_write(folder, GOOD)).prompts[0].file
    for sets, expected in (
        ([{"file": str(entry), "chat": True}], "after template"),
        ([{"file": str(entry)}, {"file": str(entry), "chat": {"system": "Be brief."}}], "after template"),
        ([{"file": str(entry), "chat": False}], "all"),
    ):
        assert load_suite(_write(folder, without), settings={"prompts": sets}).positions == expected
        assert load_suite(_write(folder, GOOD), settings={"prompts": sets}).positions == "target"
    with pytest.raises(SuiteError, match="prompts"):
        load_suite(_write(folder, without), settings={"prompts": [{"file": 3}]})
