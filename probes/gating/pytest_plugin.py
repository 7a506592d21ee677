"""The pytest plugin: a test marked `probes_gate` holds where the rules of a run pass.

    @pytest.mark.probes_gate(run="reports/demo", rules="gate.yaml")
    def test_it_may_ship(gate): ...

Where no test is marked, it imports nothing but pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from probes.gating.verdicts import Gate

_MARK = "probes_gate"
_FORM = (
    f'{_MARK}(run, rules, cannot_tell="fail"): judge a run, or a list of runs, by a file or a list of rules; relative '
    "paths are those of pytest's root. A rule that cannot be decided fails the test, or skips it."
)
_FOUND = pytest.StashKey["Gate"]()
_JUDGED = pytest.StashKey["dict[str, Gate | str]"]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _FORM)


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Gate:
    """The verdicts of the run that the test's mark names."""
    return _judged(request.node)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Judge before the test's own body, which then asks for more."""
    mark = item.get_closest_marker(_MARK)
    if mark is None:
        return
    found = _judged(item)
    bad = [ruled for ruled in found.ruled if ruled.verdict != "pass"]
    if not bad:
        return
    from probes.gating.files import sentence

    said = "\n".join(sentence(ruled) for ruled in bad)
    if found.verdict == "cannot tell" and mark.kwargs.get("cannot_tell") == "skip":
        pytest.skip(said)
    pytest.fail(f"gate: {found.verdict}\n{said}", pytrace=False)


def _judged(item: Any) -> Gate:
    """The verdicts, judged once a test; its properties go to the JUnit file, also from a worker of xdist."""
    if _FOUND in item.stash:
        known: Gate = item.stash[_FOUND]
        return known
    mark = item.get_closest_marker(_MARK)
    if mark is None:
        pytest.fail(f"the fixture `gate` is of tests marked @pytest.mark.{_MARK}(run=…, rules=…)", pytrace=False)
    judged = item.config.stash.setdefault(_JUDGED, {})  # tests of one marked class share their verdicts
    key = f"{mark.args} {mark.kwargs}"
    if key not in judged:
        judged[key] = _judge(item.config.rootpath, *mark.args, **mark.kwargs)
    found = judged[key]
    if isinstance(found, str):
        pytest.fail(f"{_MARK}: {found}", pytrace=False)
    item.stash[_FOUND] = found
    item.user_properties += [("gate", found.verdict)]
    item.user_properties += [(f"gate: {ruled.name} ({ruled.tuned})", ruled.verdict) for ruled in found.ruled]
    return found


def _judge(root: Any, run: Any = None, rules: Any = None, cannot_tell: str = "fail", **odd: Any) -> Gate | str:
    """The verdicts, or why there are none."""
    from probes.gating.verdicts import gate as judge
    from tv.errors import InputError

    if run is None or rules is None or odd or cannot_tell not in ("fail", "skip"):
        return f"the mark says something else than {_FORM}"
    runs = run if isinstance(run, list | tuple) else [run]
    here = [root / one if isinstance(one, str) and "://" not in one else one for one in runs]
    try:
        return judge(here, root / rules if isinstance(rules, str) else rules)
    except InputError as error:
        return str(error)
