"""SQL over a run: the tables' own numbers, and no way out of them."""

import json
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest

from probes.cli import main
from probes.errors import RunError
from probes.store import query as query_module
from probes.store.run import Run, load
from probes.store.schemas import SCHEMAS
from probes.store.writer import RunWriter
from tests.command import call
from tests.hostile.forked import tree

MANIFEST = {"suite": {"name": "tiny", "tuned": {"a": "x"}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two prompts, three layers of a lens."""
    directory = tmp_path_factory.mktemp("query") / "run"
    own = {"prompt_id": ["p0", "p1"], "set": "s", "domain": ["x", "y"], "text": ["[red]one", "two"]}
    prompts = pd.DataFrame(dict.fromkeys(SCHEMAS["prompts"].names) | own)
    with RunWriter(directory) as writer:
        writer.write("prompts", prompts, shard="0")
        for layer in range(3):
            own = {"prompt_id": ["p0", "p1"], "pos": [1, 2], "target_id": [7, 8], "rank_base": [layer, 9]}
            rest = {"rank_tuned": [0, 0], "prob_base": [0.5, 0.25], "prob_tuned": [1.0, 1.0], "kl": [0.1 * layer, 0.0]}
            writer.write("lens", pd.DataFrame({**own, **rest}), shard="0", tuned="a", layer=layer)
        writer.finish(MANIFEST)
    return load(directory)


def test_it_says_what_pandas_says(run: Run) -> None:
    found = run.sql(
        "SELECT domain, sum(kl) AS kl FROM lens JOIN prompts USING (prompt_id) GROUP BY domain ORDER BY domain"
    )
    joined = run["lens"].merge(run["prompts"], on="prompt_id").groupby("domain").kl.sum()
    assert found.domain.tolist() == ["x", "y"] and np.allclose(found.kl, joined)
    assert run.sql("WITH top AS (FROM lens WHERE layer = 2) SELECT count(*) AS n FROM top").n.tolist() == [2]
    assert run.sql("DESCRIBE lens").column_name.tolist() == list(run["lens"].columns)
    assert run.sql("SHOW TABLES").name.tolist() == ["lens", "prompts"]


def test_other_layers_are_not_read(run: Run, tmp_path: Path) -> None:
    """The filter goes down to the files: a damaged one that is not asked for does no harm."""
    copy = tmp_path / "run"
    for path in run.path.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(run.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (damaged,) = (copy / "tables" / "lens" / "tuned=a" / "layer=1").glob("*.parquet")
    content = bytearray(damaged.read_bytes())
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # where the footer begins
    content[4:end] = bytes(end - 4)
    damaged.write_bytes(bytes(content))
    other = load(copy)
    assert other.sql("SELECT sum(rank_base) AS s FROM lens WHERE layer = 2").s.tolist() == [11]
    with pytest.raises(RunError, match="query: "):
        other.sql("SELECT sum(rank_base) AS s, sum(kl), sum(pos), sum(target_id) FROM lens")


#: What must be refused; {file} is a file that is there, {new} one that is not.
REFUSED = [
    "COPY lens TO '{new}'",
    "COPY (SELECT 1) TO '{new}' (FORMAT parquet)",
    "COPY lens FROM '{file}'",
    "EXPORT DATABASE '{new}'",
    "IMPORT DATABASE '{new}'",
    "ATTACH '{new}' AS other",
    "DETACH memory",
    "USE memory",
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_csv_auto('{file}')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM 'https://example.org/x.parquet'",
    "FROM read_parquet('s3://bucket/x.parquet')",
    "INSTALL httpfs",
    "LOAD '{file}'",
    "PRAGMA database_list",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "CREATE TABLE kept AS SELECT 1",
    "CREATE VIEW lens AS SELECT 1",
    "CREATE SECRET (TYPE s3)",
    "CREATE MACRO f(a) AS a",
    "INSERT INTO lens SELECT * FROM lens",
    "UPDATE lens SET kl = 0",
    "DELETE FROM lens",
    "DROP VIEW lens",
    "ALTER TABLE lens ADD COLUMN x INT",
    "CALL pragma_version()",
    "EXECUTE plan",
    "PREPARE plan AS SELECT 1",
    "CHECKPOINT",
    "BEGIN",
    "SELECT getenv('HOME')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{new}''')",
    "SELECT * FROM query_table('{file}')",
    "SELECT * FROM REFUSED",
    "SELECT * FROM pd",
    "SELECT 1; COPY lens TO '{new}'",
    "SELECT * FROM nothing",
    "SELECT nothing FROM lens",
    "SELEC * FROM lens",
    "",
    "SELECT repeat('x', 3000000000), repeat('y', 3000000000) FROM lens",
]


@pytest.mark.sampled(25)
@pytest.mark.parametrize("statement", REFUSED)
def test_nothing_is_written_and_nothing_else_is_read(
    statement: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.csv").write_text("secret\n1\n")
    monkeypatch.chdir(tmp_path)
    statement = statement.replace("{file}", str(tmp_path / "own.csv")).replace("{new}", str(tmp_path / "new.csv"))
    before = tree(run.path.parent)
    status, out, err = call(monkeypatch, capsys, main, "query", run.path, statement)
    assert status == 2 and not out
    assert err.startswith("error: query: ") and err.count("\n") == 1 and "secret" not in err
    assert tree(run.path.parent) == before and [path.name for path in tmp_path.iterdir()] == ["own.csv"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bound is the system's")
def test_memory_is_bounded_during_a_query_and_only_then(run: Run) -> None:
    """DuckDB does not count strings: this one asked for 36 GB, and got them where there were as many."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match=r"query: .*llocat"):
        run.sql("SELECT repeat('x', 3000000000), repeat('y', 3000000000) FROM lens")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < 5e9


@pytest.mark.thorough
def test_threads_ask_at_the_same_time_and_nothing_here_is_bounded(run: Run) -> None:
    """A slow statement does not keep a quick one waiting, and this process keeps its limits all the while."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    run.sql("SELECT 1"), query_module._idle[-1]  # one process is up
    ended: list[str] = []

    def ask(name: str, statement: str) -> None:
        run.sql(statement)
        ended.append(name)

    slow = Thread(
        target=ask, args=("slow", "SELECT count(*) FROM range(60000) a, range(60000) b WHERE a.range < b.range")
    )
    slow.start()
    while query_module._idle:  # until the slow one has taken the process
        time.sleep(0.01)
    ask("quick", "SELECT count(*) FROM lens")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    slow.join()
    assert sorted(ended) == ["quick", "slow"] and len(query_module._idle) == 2


def test_a_process_that_dies_is_replaced(run: Run) -> None:
    run.sql("SELECT 1")
    query_module._idle[-1]._child.kill()
    with pytest.raises(RunError, match=r"^query: it needs more memory than the 4 GB"):
        run.sql("SELECT 1")
    assert run.sql("SELECT 1 AS n").n.tolist() == [1]


def test_the_place_where_it_was_first_asked_may_go(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    process = query_module._Process()
    place.rmdir()
    opened = {"lens": run.table("lens").dataset()}
    said, _ = process.ask((opened, ["lens"], "SELECT count(*) FROM lens"))
    process.end()
    assert said == "table"


def test_a_table_with_capital_letters_is_opened_beside_another(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "table.parquet")
    tables = {name: lambda: ds.dataset(tmp_path / "table.parquet") for name in ("gates", "Gaps")}
    answer = query_module.query(tables, "SELECT gates.a FROM gates JOIN GAPS USING (a) ORDER BY 1")
    assert answer["a"].to_pylist() == [1, 2]


def test_an_idle_process_ends_by_itself_with_the_program(run: Run) -> None:
    """Its input ends, and it is not killed."""
    run.sql("SELECT 1")
    children = [process._child for process in query_module._idle]
    query_module._end_all()
    assert children and [child.returncode for child in children] == [0] * len(children)
    assert run.sql("SELECT 1 AS n").n.tolist() == [1]


def test_a_table_that_is_not_there_is_told_beside_those_that_are(run: Run) -> None:
    with pytest.raises(RunError, match="no table 'nothing'; there are prompts, lens"):
        run.sql("SELECT * FROM nothing")
    with pytest.raises(RunError, match=r"no table 'len'; did you mean 'lens'[?] There are prompts, lens"):
        run.sql("SELECT * FROM len")


@pytest.mark.parametrize("asked", ["SELECT dmain FROM prompts", "SELECT p.dmain, l.kl FROM lens l, prompts p"])
def test_a_column_that_is_not_there_is_told_beside_those_of_the_tables_asked(run: Run, asked: str) -> None:
    with pytest.raises(
        RunError, match=r"no column 'dmain'; did you mean 'domain'[?] .*columns of prompts: prompt_id, "
    ):
        run.sql(asked)


def test_the_command_prints_some_and_writes_all(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call(monkeypatch, capsys, main, "query", run.path, "FROM prompts ORDER BY prompt_id", "--rows", 1)
    assert status == 0 and "[red]one" in out and "two" not in out and "1 more rows" in out
    asked = "SELECT prompt_id, kl FROM lens WHERE layer = 1 ORDER BY ALL"
    read = {
        "csv": pd.read_csv,
        "parquet": pd.read_parquet,
        "json": lambda path: pd.DataFrame(json.loads(path.read_text())),
    }
    for suffix, of in read.items():
        path = tmp_path / f"answer.{suffix}"
        assert call(monkeypatch, capsys, main, "query", run.path, asked, "-o", path)[0] == 0
        pd.testing.assert_frame_equal(of(path), run.sql(asked), check_dtype=False)
    asked = "SELECT 1 AS n, encode('ab') AS bits, NULL::DOUBLE AS p, sum(pos) AS total FROM lens"
    _, out, _ = call(monkeypatch, capsys, main, "query", run.path, asked)
    assert out.splitlines()[3].split() == ["1", "2", "bytes", "–", "9"]
    _, out, _ = call(monkeypatch, capsys, main, "query", run.path, asked, "--json")
    assert json.loads(out)["tables"][0]["data"] == [[1, "6162", None, 9]]


def test_where_no_answer_can_be_written_none_is_looked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, told in (("answer.xls", ".parquet, .csv, .json"), ("no/answer.csv", "directory does not exist")):
        status, _, err = call(monkeypatch, capsys, main, "query", run.path, "SELEC", "-o", tmp_path / name)
        assert status == 2 and told in err and "query:" not in err
    assert not list(tmp_path.iterdir())
