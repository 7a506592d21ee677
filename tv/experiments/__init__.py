"""The source's experiments and its open questions: tables, figures and intervals; rerun one to resume it."""

from tv.experiments.adding import addition
from tv.experiments.aligning import ssa
from tv.experiments.lineages import lineage
from tv.experiments.negating import negation
from tv.experiments.result import Result

__all__ = ["Result", "addition", "lineage", "negation", "ssa"]
