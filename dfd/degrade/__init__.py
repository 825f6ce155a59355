"""Degradations: the operators at a fixed level, and the registry that names, chains, reads and draws them.

Imports nothing of `dfd`.
"""

from dfd.degrade.operators import DEGRADATIONS, as_float, jpeg, to_tensor
from dfd.degrade.registry import RandomDegrade, at_level, compose, describe, parse, parse_all

__all__ = ["DEGRADATIONS", "RandomDegrade", "as_float", "at_level", "compose", "describe", "jpeg", "parse", "parse_all"]
__all__ += ["to_tensor"]
