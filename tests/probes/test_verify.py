"""`probes verify`: every planted edit of a run is named, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import probes
from probes.cli import main
from probes.store.digests import FILES, OWN, digest_of, file_digest
from probes.store.manifest import MANIFEST, write_manifest
from tests.command import call
from tests.pairs import build_pair, write_suite


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    base, tuned = build_pair(folder, "llama")
    suite = write_suite(folder, base, tuned, measure=["gates", "behaviour"], attribute=None)
    probes.run(suite, out=folder / "run")
    return folder / "run"


def _set(path: Path, column: str, value: object) -> None:
    """Another value in the first row of a Parquet file."""
    table = pq.read_table(path)
    i = table.schema.get_field_index(column)
    first = pa.array([value], table.schema.field(i).type)
    pq.write_table(table.set_column(i, column, pa.concat_arrays([first, table[i].combine_chunks()[1:]])), path)


def _one(run: Path, table: str) -> Path:
    return min((run / "tables" / table).rglob("*.parquet"))


def _cell(run: Path) -> None:
    _set(_one(run, "behaviour"), "value", 0.123)


def _number(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "6 prompts" in page
    (run / "report.html").write_text(page.replace("6 prompts", "9 prompts", 1))


def _manifest(run: Path) -> None:
    content = json.loads((run / MANIFEST).read_text())
    content["versions"]["torch"] = "1.0"
    (run / MANIFEST).write_text(json.dumps(content))


def _prompt(run: Path) -> None:
    path = _one(run, "prompts")
    _set(path, "text", "The lungs pump")
    # By someone who also writes the digests anew.
    manifest = json.loads((run / MANIFEST).read_text())
    manifest[FILES][path.relative_to(run).as_posix()] = file_digest(path)
    write_manifest(run, manifest)


def _row_more(run: Path) -> None:
    path = _one(run, "behaviour")
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table[:1]]), path)


def _swapped(run: Path) -> None:
    one, other = sorted((run / "tables" / "gates").rglob("*.parquet"))[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


PLANTED: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "a cell": (_cell, [("files", "tables/behaviour/part-"), ("report", "the tables give")]),
    "a number of the report": (_number, [("report", "9 prompts")]),
    "a table": (
        lambda run: shutil.rmtree(run / "tables" / "tokens"),
        [("files", "tables/tokens/"), ("tables", "tokens")],
    ),
    "a file more": (lambda run: (run / "tables" / "notes.txt").write_text("x"), [("files", "tables/notes.txt")]),
    "the manifest": (_manifest, [("manifest", "it was edited"), ("journal", "versions.torch"), ("report", "1.0")]),
    "a prompt": (_prompt, [("prompts", "a1: it was edited"), ("report", "The lungs pump")]),
    "a row more": (_row_more, [("files", "tables/behaviour/"), ("tables", "behaviour: "), ("report", "")]),
    "swapped files": (_swapped, [("files", "tables/gates/"), ("files", "tables/gates/"), ("report", "")]),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", PLANTED)
def test_every_edit_is_named_and_nothing_else(made: Path, tmp_path: Path, name: str) -> None:
    edit, expected = PLANTED[name]
    run = tmp_path / "run"
    shutil.copytree(made, run)
    edit(run)
    verified = probes.verify(run)
    assert verified.passes is False
    failed = [(check.name, check.said) for check in verified.checks if check.passes is False]
    for kind, part in expected:
        assert any(of == kind and part in said for of, said in failed), (kind, part, failed)
    assert {of for of, _ in failed} == {of for of, _ in expected}, failed
    assert all("\n" not in said for _, said in failed)


def test_a_whole_run_passes_wherever_it_lies_and_after_tables_were_added(made: Path, tmp_path: Path) -> None:
    told: list[str] = []
    verified = probes.verify(made, models=True, progress=lambda stage, *_: told.append(stage))
    assert verified.passes is True, verified.checks
    assert {check.name for check in verified.checks} == {
        *("manifest", "files", "journal", "tables", "prompts", "report", "models")
    }
    assert "hash files" in told

    moved = shutil.copytree(made, tmp_path / "run")
    run = probes.load(moved)
    run.add("behaviour", run["behaviour"].assign(value=0.5))
    run.drop("correlations")
    probes.report(probes.load(moved))
    again = probes.verify(moved)
    assert again.passes is True and again.digest != verified.digest, again.checks
    run = probes.load(moved)
    del run.manifest["identity"]  # as `probes.attribute` leaves it
    write_manifest(Path(moved), run.manifest)
    assert probes.verify(moved).passes is None, probes.verify(moved).checks

    fsspec.filesystem("memory").put(f"{made}/", "verified/", recursive=True)
    far = probes.verify("memory://verified", digest=verified.digest)
    assert far.passes is True and far.digest == verified.digest


def test_what_an_older_run_cannot_tell(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    content = json.loads((run / MANIFEST).read_text())
    del content[FILES], content[OWN]
    (run / MANIFEST).write_text(json.dumps(content))
    assert probes.verify(run).passes is None


def test_other_weights_are_told(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    manifest = json.loads((run / MANIFEST).read_text())
    sources = manifest["checkpoints"]
    sources["base"]["source"], sources["moved"]["source"] = sources["moved"]["source"], sources["base"]["source"]
    write_manifest(run, manifest)
    checks = [check for check in probes.verify(run, models=True).checks if check.name == "models"]
    assert [check.passes for check in checks] == [False, False]


def test_the_command_has_the_status_of_its_verdict(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call(monkeypatch, capsys, main, "verify", made, "--digest", "1234", "--json")
    assert status == json.loads(out)["status"] == 3
    assert digest_of(json.loads((made / MANIFEST).read_text())) in out
    status, _, said = call(monkeypatch, capsys, main, "verify", tmp_path)
    assert status == 2 and "not a run directory" in said
