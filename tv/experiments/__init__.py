"""The source's experiments and its open questions: tables, figures and intervals, and each goes on where it stood."""

from tv.experiments.addition import addition
from tv.experiments.lineage import lineage
from tv.experiments.negation import negation
from tv.experiments.result import Result
from tv.experiments.ssa import ssa

__all__ = ["Result", "addition", "lineage", "negation", "ssa"]
