"""By what name the trainer's command line was called."""

PROGRAM_VARIABLE = "EVENLOAD_PROGRAM"
"""Environment variable: the name by which `python -m trainer` was called, for its help and its refusals."""
