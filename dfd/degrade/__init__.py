"""Degradations: the operators at a fixed level, and the registry that names, chains, reads and draws them.

Imports nothing of `dfd`.
"""

# ruff: noqa: F401
from dfd.degrade.operators import DEGRADATIONS, jpeg, to_tensor
from dfd.degrade.registry import RandomDegrade, compose, parse, parse_all
