"""The `tv` command on good and bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

import tv
from tests.command import call
from tests.pairs import build_model, build_pair, perturb
from tests.tv.matching.same_function import permute_neurons
from tv.cli import main
from tv.cli.align import _print as print_matches
from tv.cli.evaluate import print_differences, print_means
from tv.cli.experiment import _print as print_results
from tv.cli.path import _print_plane
from tv.cli.terminal import begin, end


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_tables_are_written(ending: str, tmp_path: Path, monkeypatch, capsys) -> None:
    pair = build_pair(tmp_path)
    readers = {"parquet": pd.read_parquet, "csv": pd.read_csv, "json": pd.read_json}
    for command, expected in (("ssa", tv.ssa(*pair)), ("geometry", tv.geometry(*pair, heads=False))):
        out = tmp_path / f"{command}.{ending}"
        code, stdout, _ = call(monkeypatch, capsys, main, command, *pair, "-o", out)
        assert code == 0 and {"ssa": "its null", "geometry": "tuning vector by module"}[command] in stdout
        assert len(readers[ending](out)) == len(expected)
    assert not list(tmp_path.glob("*.tmp"))


def test_what_did_not_move_has_a_dash_and_no_part_in_a_mean(tmp_path: Path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    model = build_model()
    perturb(model.model.layers[1].self_attn.v_proj, 0.1, seed=3)
    model.save_pretrained(tuned)
    shown = {}
    for command in ("ssa", "geometry"):
        code, stdout, _ = call(monkeypatch, capsys, main, command, "--json", base, tuned)
        assert code == 0 and "NaN" not in stdout and "no matrix of a block changed" not in stdout
        shown |= {command: json.loads(stdout)["tables"][0]}
    alignment = tv.ssa(base, tuned, (0.05,), heads=False)
    moved = alignment[(alignment.layer == 1) & (alignment.module == "v") & (alignment.side == "left")]
    rows = {row[0]: row[1:] for row in shown["ssa"]["data"]}
    assert rows["q"][:2] == [None, None] and rows["q"][4] is None
    fixed, at = (moved[moved.epsilon.isna() == is_fixed].iloc[0] for is_fixed in (True, False))
    assert rows["v"][0] == pytest.approx(fixed.ssa**2 / fixed.ssa_null**2)
    assert rows["v"][4:6] == pytest.approx([at.ssa, at.ssa_null])
    rows = {row[0]: dict(zip(shown["geometry"]["columns"], row, strict=True)) for row in shown["geometry"]["data"]}
    assert rows["q"]["cos(W, T)"] is None and rows["q"]["‖T‖/‖W‖"] == 0 and rows["v"]["effective rank"] > 1
    code, stdout, _ = call(monkeypatch, capsys, main, "ssa", "--swap", base, base)
    assert code == 0 and "mean lift – on a module's own basis, – on another layer's" in stdout and "nan" not in stdout
    assert "no matrix of a block changed" in stdout


THIRD, NOTHING = 1 / 3, float("nan")
_MEAN = {"task": "t", "metric": "m", "variant": "a", "lo": 0.25, "hi": NOTHING}
_P = {"difference": THIRD, "p": 1e-12, "least_p": NOTHING, "q": 1e-9}
_LOSS = {"metric": "loss", "value": THIRD, "lo": 0.25, "hi": 0.5, "prompts": 3, "clusters": 3, "over": "targets"}
_MATCH = {"kind": "heads", "n": 3, "layer": 0, "on": "weights", "moved_fraction": THIRD, "sign_flipped_fraction": 0.0}
_SCORES = {"scale_moved_fraction": NOTHING, "identity_score": 1.0, "mean_score": 1.0, "gain": 0.0}
#: What prints a table, and its first row as a program reads it.
PRINTED: dict[str, tuple[Callable[[], None], list[object]]] = {
    "means": (
        lambda: print_means(pd.DataFrame([_MEAN | {"value": THIRD, "n": 3, "clusters": 2}])),
        ["t", "m", "a", THIRD, [0.25, None], 3, 2],
    ),
    "differences": (
        lambda: print_differences(pd.DataFrame([_MEAN | _P]), "b"),
        ["t", "m", "a", THIRD, [0.25, None], 1e-12, None, 1e-9],
    ),
    "experiment": (
        lambda: print_results(
            "", pd.DataFrame([{"task": "t", "gain": THIRD, "gain_lo": 0.25, "gain_hi": 0.5}]), ["task"], "gain", []
        ),
        ["t", [THIRD, 0.25, 0.5]],
    ),
    "plane": (lambda: _print_plane("all", _plane()), [0.0, THIRD, THIRD]),
    "align": (lambda: print_matches(pd.DataFrame([_MATCH | _SCORES])), ["heads", 3, THIRD, 0.0, None, 1.0, 1.0, 0.0]),
}


def _plane() -> pd.DataFrame:
    return pd.DataFrame(_LOSS | {"alpha": [0.0, 0.0, 1.0, 1.0], "beta": [0.0, 1.0, 0.0, 1.0]})


@pytest.mark.parametrize("name", PRINTED)
def test_a_program_reads_numbers_in_full(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show, expected = PRINTED[name]
    begin(quiet=False, json=True)
    show()
    end("tv")
    begin(quiet=False, json=False)
    assert json.loads(capsys.readouterr().out)["tables"][0]["data"][0] == expected


def test_info_and_extract(tmp_path: Path, monkeypatch, capsys) -> None:
    pair = build_pair(tmp_path)
    code, stdout, _ = call(monkeypatch, capsys, main, "info", *pair)
    assert code == 0 and "LlamaForCausalLM" in stdout and "compatible with the base; same tokenizer" in stdout
    assert call(monkeypatch, capsys, main, "extract", *pair, "-o", tmp_path / "t.safetensors")[0] == 0
    assert tv.TuningVector.load(tmp_path / "t.safetensors").norm() == pytest.approx(tv.extract(*pair).norm())


def test_info_counts_the_numbers_of_each_kind_of_row(monkeypatch, capsys) -> None:
    config = Path(__file__).parents[2] / "architectures" / "configs" / "mistral-small-3.1.json"
    code, stdout, _ = call(monkeypatch, capsys, main, "info", "--json", config)
    rows = json.loads(stdout)["tables"][0]["data"]
    assert code == 0 and sum(row[-1] for row in rows) == 24_011_361_280
    assert ["vision_tower", "group", None, None, "unknown", 1, 403_305_472] in rows  # no matrix: a sum over many
    assert ["gate", "linear", 32768, 5120, "unknown", 40, 40 * 32768 * 5120] in rows


def test_info_tells_the_notes_of_one_and_refuses_before_its_table(tmp_path: Path, monkeypatch, capsys) -> None:
    base, _ = build_pair(tmp_path)
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"x": "old-00001-of-00001.safetensors"}}')
    code, stdout, _ = call(monkeypatch, capsys, main, "info", base)
    assert code == 0 and "note: " in stdout and "model.safetensors is read" in stdout
    (other,) = build_pair(tmp_path / "other", "mistral")[:1]
    code, stdout, stderr = call(monkeypatch, capsys, main, "info", base, other)
    assert code == 2 and not stdout and "MistralForCausalLM, but the base" in stderr


@pytest.mark.parametrize(("n", "said"), [(1, "all: 1 prompt, loss"), (3, "all: 3 prompts, loss")])
def test_one_prompt_is_one(n: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    _print_plane("all", _plane().assign(prompts=n, clusters=n))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("command", ["apply", "cosine", "evaluate", "info", "quality"])
def test_usage_of_a_command_is_its_own(command: str, monkeypatch, capsys) -> None:
    _, stdout, stderr = call(monkeypatch, capsys, main, command, "--help")
    assert "Usage: tv" in stdout + stderr and "completion" not in stdout + stderr and "...}" not in stdout + stderr
    assert "......" not in stdout + stderr


def test_ssa_by_other_rules_and_with_its_controls(tmp_path: Path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    out, curve = tmp_path / "ssa.csv", tmp_path / "curve.csv"
    options = ["--k-rule", "energy", "--level", "0.9", "--null", "row_scale", "--swap", "--cache", tmp_path / "cache"]
    code, stdout, _ = call(
        monkeypatch, capsys, main, "ssa", base, tuned, "--no-heads", *options, "-o", out, "--curve", curve
    )
    assert code == 0 and "energy share 0.9" in stdout and "another layer's" in stdout
    frame, points = pd.read_csv(out), pd.read_csv(curve)
    assert set(frame.k_rule) == {"energy", "fixed"} and set(frame["null"]) == {"row_scale"}
    assert frame.ssa_swap.between(0, 1).all() and not frame.ssa_swap.equals(frame.ssa)
    assert set(frame.fingerprint_base) == {tv.open_checkpoint(base).fingerprint()["content"]}
    merged = frame.merge(points, on=["layer", "module", "side", "k"], suffixes=("", "_curve"))
    assert len(merged) == len(frame) and (merged.ssa - merged.ssa_curve).abs().max() < 1e-9
    assert any((tmp_path / "cache").rglob("*.safetensors"))


def test_an_extracted_vector_serves_as_the_tuned_side(tmp_path: Path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    vector = tmp_path / "t.safetensors"
    call(monkeypatch, capsys, main, "extract", base, tuned, "-o", vector)
    for command, options in (("ssa", []), ("geometry", ["--tokens", "0"]), ("info", []), ("align", [])):
        code, _, stderr = call(monkeypatch, capsys, main, command, base, vector, *options)
        assert code == 0, stderr
    code, _, stderr = call(monkeypatch, capsys, main, "cosine", base, f"a={vector}", f"b={tuned}")
    assert code == 0, stderr
    pd.testing.assert_frame_equal(tv.ssa(base, vector), tv.ssa(base, tuned), atol=1e-6)


def test_a_change_of_writing_is_said_and_undone(tmp_path: Path, monkeypatch, capsys) -> None:
    base, _ = build_pair(tmp_path)
    model = build_model()
    torch.manual_seed(0)
    permute_neurons(model)
    other = tmp_path / "other"
    model.save_pretrained(other)
    code, stdout, _ = call(monkeypatch, capsys, main, "align", base, other)
    assert code == 0 and "these two compute the same function, written differently: neurons permuted" in _on_one_line(
        stdout
    )
    for command, options in (("geometry", ["--tokens", "0"]), ("ssa", [])):
        out = tmp_path / f"{command}.csv"
        code, stdout, _ = call(monkeypatch, capsys, main, command, base, other, "--align", "-o", out, *options)
        assert code == 0 and "aligned: these two compute the same function" in _on_one_line(stdout)
        frame = pd.read_csv(out)
        assert (frame.delta_norm == 0).all() if command == "geometry" else len(frame)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ssa", "{base}", "./nowhere"], "no such directory"),
        (["ssa", "{base}", "{tuned}", "-o", "out.xlsx"], ".xlsx"),
        (["ssa", "{base}", "{tuned}", "-o", "no/such/out.csv"], "directory"),
        (["ssa", "{base}", "{tuned}", "--epsilon", "1.5"], "1.5"),
        (["ssa", "{base}", "{tuned}", "--null", "chance"], "'chance'"),
        (["ssa", "{base}", "{tuned}", "--k-rule", "energy"], "needs levels"),
        (["ssa", "{base}", "{tuned}", "--k-rule", "most"], "'most'"),
        (["ssa", "{base}", "{tuned}", "--curve", "c.png"], ".png"),
        (["ssa", "{base}", "{tuned}", "--workers", "0"], "0 workers"),
        (["ssa", "{base}", "{tuned}", "--device", "abacus"], "abacus"),
        (["ssa", "{base}", "{tuned}", "--engine", "steam"], "engine"),
        (["extract", "{base}", "{tuned}", "-o", "t.bin"], ".safetensors"),
        (["ssa", "{base}"], "TUNED"),
        (["ssa", "{base}", "{tuned}", "--epsilon", "small"], "--epsilon"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], expected: str, tmp_path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, stderr = call(monkeypatch, capsys, main, *(a.format(base=base, tuned=tuned) for a in arguments))
    assert code == 2 and expected in stderr and len(stderr.strip().splitlines()) == 1, stderr
    assert sorted(tmp_path.rglob("*")) == before
