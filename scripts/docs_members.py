"""For `make docs`: a room's page shows each name once, in the module that defines it, not again as a re-export."""

from typing import Any

import griffe


class OnceOnly(griffe.Extension):
    """Leave out the names that a package only passes on from its own modules."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for room in pkg.modules.values():
            for name, member in list(room.members.items()):
                if member.is_alias and member.target_path.startswith(f"{room.path}."):
                    room.del_member(name)
