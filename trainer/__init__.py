"""One run: config in, telemetry and reports out."""

PROGRAM_VARIABLE = "EVENLOAD_PROGRAM"
"""Environment variable: the name by which `python -m trainer` was called, for its help and its refusals."""
