"""What the data and the mistakes show: audit, slices, label errors, fingerprint, explanations, ablation.

May import evaluate, train and what lies beneath them.
"""

from dfd.analysis import audit, explain, fingerprint, slices
from dfd.analysis.audit import format_audit
from dfd.analysis.explain import grad_cam, spectrum
from dfd.analysis.fingerprint import fingerprints

__all__ = ["audit", "explain", "fingerprint", "fingerprints", "format_audit", "grad_cam", "slices", "spectrum"]
