"""What the data and the mistakes show: audit, slices, label errors, fingerprint, explanations, ablation, removal.

May import evaluate, train and what lies beneath them. Its modules are imported by name.
"""
