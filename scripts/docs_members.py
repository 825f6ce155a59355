"""For `make docs`: a page shows each name once, where it is defined, and fields with what is said behind them."""

from typing import Any

import griffe


class OnceOnly(griffe.Extension):
    """Leave out the names that a package only passes on from its own modules."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for room in pkg.modules.values():
            for name, member in list(room.members.items()):
                if member.is_alias and member.target_path.startswith(f"{room.path}."):
                    room.del_member(name)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Take the comment behind a field of a class for its docstring: parameters have no other."""
        if isinstance(attr.parent, griffe.Class) and not attr.docstring and attr.lineno and attr.annotation:
            line = attr.filepath.read_text("utf-8").splitlines()[attr.lineno - 1]
            attr.docstring = griffe.Docstring(line.partition("  # ")[2] or "…", parent=attr)
