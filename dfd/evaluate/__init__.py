"""What scores say: score tables, the one registry of metrics with its bootstrap, the sweep, hold-outs, runs compared.

May import inference and what lies beneath it; knows neither training nor plots. Its modules are imported by name.
"""
