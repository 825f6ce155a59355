"""Images from the clipboard: a place in the page that takes a paste, in JupyterLab and Voilà."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

from dfd.images import MAX_BYTES

TEMPLATES = Path(__file__).parent / "templates"


class Paste(anywidget.AnyWidget):
    """A button that reads the clipboard; with the focus on it, Ctrl+V or Cmd+V works too.

    The button needs the browser's permission to read the clipboard, which browsers grant on https and localhost only;
    the keys need none.
    """

    _esm = TEMPLATES / "clipboard.js"
    limit = traitlets.Int(MAX_BYTES, help="bytes that one paste may bring").tag(sync=True)

    def __init__(self, given: Callable[[list[tuple[str, bytes]]], None], refused: Callable[[str], None]):
        """Watch for pastes.

        Args:
            given: gets the name and the bytes of each pasted file.
            refused: gets the reason why nothing came of a paste.
        """
        super().__init__()
        self._given, self._refused = given, refused
        self.on_msg(self._pasted)

    def _pasted(self, widget: Paste, content: dict, buffers: list) -> None:
        names = [str(name) for name in content.get("names", ())]
        if names and len(names) == len(buffers):
            self._given([(name, bytes(data)) for name, data in zip(names, buffers, strict=True)])
        else:
            self._refused(str(content.get("reason") or "the clipboard gave nothing"))
