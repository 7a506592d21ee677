"""What a page of figures holds, for tests."""

import base64
import gzip
import json
from typing import Any


def unpacked(page: str, id: str) -> str:
    """What a page of figures holds in its script element `id`: "data", or "plotly", the library that draws."""
    return gzip.decompress(base64.b64decode(page.split(f'id="{id}">')[1].split("</script>")[0])).decode()


def data_of(page: str) -> dict[str, Any]:
    """The figures and links that a page's script draws."""
    content: dict[str, Any] = json.loads(unpacked(page, "data"))
    return content


def unfold(page: Any) -> None:
    """Open every fold of a page in a browser."""
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")


def drawn(page: Any, figure: str) -> Any:
    """A figure of a page in a browser, once it is drawn: its folds open, it comes into view, and so it must be."""
    place = page.locator(f"[id={figure!r}]")
    place.evaluate("at => { for (let fold = at; (fold = fold.parentElement?.closest('details')); ) fold.open = true; }")
    place.scroll_into_view_if_needed()
    place.locator(".main-svg").first.wait_for()
    return place
