"""What the data and the mistakes show: audit, slices, label errors, fingerprint, explanations, ablation.

May import evaluate, train and what lies beneath them.
"""

# ruff: noqa: F401
from dfd.analysis import audit, explain, fingerprint, slices
from dfd.analysis.audit import format_audit
from dfd.analysis.explain import grad_cam, spectrum
from dfd.analysis.fingerprint import fingerprints
