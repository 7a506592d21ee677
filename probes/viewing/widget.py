"""The page as a notebook's widget: requests and replies are its messages."""

from __future__ import annotations

from typing import Any

import anywidget

from probes.viewing.page import style, widget_script
from probes.viewing.session import Session


class View(anywidget.AnyWidget):
    """Both models of a run, live, in a cell.

    Attributes:
        session: What answers: `view.session.handle({"do": "open"})`.
    """

    _esm = widget_script()
    _css = style()

    def __init__(self, session: Session) -> None:
        """Show what this session answers."""
        super().__init__()
        self.session = session
        self.on_msg(self._asked)

    def _asked(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """Answer a message of the page under its number."""
        try:
            reply = self.session.handle(content["request"])
        except Exception as error:
            self.send({"id": content["id"], "reply": {"error": f"{type(error).__name__}: {error}"}})
            raise
        self.send({"id": content["id"], "reply": reply})
