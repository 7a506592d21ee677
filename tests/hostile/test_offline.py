"""Neither importing nor a run of local paths asks anything of the network, and nothing tells anybody of its use.

Nor does importing change anything of the caller's.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.offline import no_network
from tests.pairs import build_pair, write_suite

#: Told by the interpreter itself of whatever code asks for an address, from its first import on.
_WATCHED = """
import os, socket, sys

def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        if event != "socket.connect" or args[0].family != socket.AF_UNIX:
            os.write(2, f"NETWORK {event} {args}\\n".encode())
            raise OSError("no network")

sys.addaudithook(watch)
from huggingface_hub import constants

def state():  # but for what torch sets for itself
    return {name: os.environ[name] for name in os.environ if name[:3] not in ("TOR", "KMP")}, dict(vars(constants))

before = state()
import probes, tv

tv.open_checkpoint, probes.run
if state() != before:
    os.write(2, b"CHANGED\\n")

import tv.cli
from probes.cli import main

*arguments, there, elsewhere = sys.argv[1:]
for suite in (there, elsewhere):
    sys.argv = ["probes", "run", suite, *arguments]
    try:
        main()
    except SystemExit as end:
        os.write(2, f"STATUS {end.code or 0}\\n".encode())
"""


def test_neither_imports_nor_a_run_of_local_paths_need_the_network(tmp_path: Path) -> None:
    """Nothing is asked for before the second suite, whose base is to come from the hub: the watch notices that.

    Importing leaves the environment and the hub library's switches as they are: those are for the console scripts.
    """
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").mkdir()
    suites = (
        write_suite(tmp_path / "there", *build_pair(tmp_path), noise_floor=False, bootstrap=20),
        write_suite(tmp_path / "elsewhere", Path("nobody/nothing-of-that-name"), tmp_path),
    )
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    call = [sys.executable, "-c", _WATCHED, "--force", "--out", *map(str, (tmp_path / "run", *suites))]
    ended = subprocess.run(call, env=online, capture_output=True, text=True, check=False, timeout=300)
    here, _, hub = ended.stderr.partition("STATUS 0\n")
    assert "CHANGED" not in here and "NETWORK" not in here, ended.stderr
    assert "NETWORK socket.getaddrinfo" in hub and "STATUS 2" in hub, ended.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_the_cut_is_noticed() -> None:
    """Else the tests that use it prove nothing: a hub id is asked for, and is told to be out of reach."""
    from tv.checkpoints.location import locate
    from tv.errors import CheckpointError

    with no_network() as asked, pytest.raises(CheckpointError, match="cannot be had from the hub"):
        locate("nobody/nothing-of-that-name")
    assert asked


def test_the_libraries_of_a_console_script_report_no_use() -> None:
    """Said before they are imported, which read their switches then; a wish that the environment has stands."""
    program = (
        "import os, sys\nos.environ['DO_NOT_TRACK'] = '0'\nsys.argv = ['tv', '--help']\nimport tv.cli\n"
        "try:\n    tv.cli.main()\nexcept SystemExit:\n    pass\n"
        "from huggingface_hub import constants\n"
        "switches = ('HF_HUB_DISABLE_TELEMETRY', 'RAY_USAGE_STATS_ENABLED', 'DO_NOT_TRACK')\n"
        "print('told:', *(os.environ[name] for name in switches), constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "told: 1 0 0 True"
