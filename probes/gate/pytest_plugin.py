"""The pytest plugin: a test marked `probes_gate` holds where the rules of a run pass.

    @pytest.mark.probes_gate(run="reports/demo", rules="gate.yaml")
    def test_it_may_ship(gate): ...

Where no test is marked, it imports nothing but pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from probes.gate.verdicts import Gate

_MARK = "probes_gate"
_FORM = (
    f'{_MARK}(run, rules, cannot_tell="fail"): judge a run, or a list of runs, by a file or a list of rules; relative '
    "paths are those of pytest's root. A rule that cannot be told fails the test, or skips it."
)
_FOUND = pytest.StashKey["Gate"]()


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
    from probes.gate.files import sentence

    said = "\n".join(sentence(ruled) for ruled in bad)
    if found.verdict == "cannot tell" and mark.kwargs.get("cannot_tell") == "skip":
        pytest.skip(said)
    pytest.fail(f"gate: {found.verdict}\n{said}", pytrace=False)


def _judged(item: Any) -> Gate:
    """The verdicts, judged once a test; its properties go to the JUnit file, also from a worker of xdist."""
    if _FOUND in item.stash:
        found: Gate = item.stash[_FOUND]
        return found
    mark = item.get_closest_marker(_MARK)
    if mark is None:
        pytest.fail(f"the fixture `gate` is of tests marked @pytest.mark.{_MARK}(run=…, rules=…)", pytrace=False)
    from tv.errors import InputError

    try:
        found = _judge(item.config.rootpath, *mark.args, **mark.kwargs)
    except (InputError, TypeError) as error:
        pytest.fail(f"{_MARK}: {error}", pytrace=False)
    item.stash[_FOUND] = found
    item.user_properties += [("gate", found.verdict)]
    item.user_properties += [(f"gate: {ruled.name} ({ruled.tuned})", ruled.verdict) for ruled in found.ruled]
    return found


def _judge(root: Any, run: Any, rules: Any, cannot_tell: str = "fail") -> Gate:
    from probes.gate.verdicts import gate as judge

    if cannot_tell not in ("fail", "skip"):
        raise TypeError(f'cannot_tell={cannot_tell!r}: it is "fail" or "skip"')
    runs = [run] if isinstance(run, str) or not isinstance(run, list | tuple) else run
    here = [root / one if isinstance(one, str) and "://" not in one else one for one in runs]
    return judge(here, root / rules if isinstance(rules, str) else rules)
