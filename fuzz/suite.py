"""The suite reader: YAML by a stranger's hand."""

from __future__ import annotations

from fuzz.oracle import is_read
from probes.suite import load_suite

_WHOLE = b"""\
name: demo
base: org/base
tuned: {medical: org/medical@v1.0, math: org/math}
prompts:
  - {file: prompts.jsonl, domain: medical, columns: {text: question}, limit: 3, chat: {system: Be short.}}
  - {dataset: org/set, config: c, split: test, revision: "1"}
positions: all
measure: [gates, contributions, changes, ledger, lens, behaviour]
sites: [gate, attn_out]
ledger_positions: target
generate: {tokens: 4, from: base}
edit_distance: none
noise_floor: false
keep: [resid_post]
attribute: {methods: [path, graft], metric: logit_diff, granularity: [module], nodes: 8, controls: [random], curves: no}
backend: nnsight
batch_size: 4
epsilons: [0.01, 5.0e-2]
bootstrap: 20
seed: 0
"""
SEEDS = [
    _WHOLE,
    b"name: a\nbase: b\ntuned: {c: d}\nprompts: [{file: prompts.jsonl}]\n",
    b"&a {name: x, base: *a, tuned: {<<: *a}, prompts: [*a]}",
    b"? [a, b]\n: !!python/name:os.system ''\n2020-01-01: |\n  x\n",
]


def target(data: bytes) -> bool:
    """Whether these bytes are a suite."""
    return is_read({"suite.yaml": data, "prompts.jsonl": b""}, lambda here: load_suite(here / "suite.yaml"))
