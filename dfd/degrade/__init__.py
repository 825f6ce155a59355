"""Degradations: the operators at a fixed level, and the registry that names, chains, reads and draws them.

Imports nothing of `dfd`.
"""

from dfd.degrade.operators import DEGRADATIONS, jpeg, to_tensor
from dfd.degrade.registry import RandomDegrade, compose, parse, parse_all
