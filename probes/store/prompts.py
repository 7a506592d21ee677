"""The prompts that a run was made with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from probes.store.run import Run
from tv.prompts.files import Prompt


def prompts_of(run: Run) -> list[Prompt]:
    """The prompts of a run's table `prompts`, in order."""
    rows = run.arrow("prompts").drop_columns(["answer_pos"]).rename_columns({"prompt_id": "id"}).to_pylist()
    return [Prompt(**row) for row in rows]


def prompt_digest(prompt: Prompt) -> str:
    """A hash of all that a prompt holds, as a run's journal keeps it."""
    return hashlib.sha256(json.dumps(asdict(prompt), ensure_ascii=False).encode()).hexdigest()[:16]
