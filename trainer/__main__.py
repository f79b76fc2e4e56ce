"""`python -m trainer`, and what `evenload` becomes for the commands that need no service."""

import os

from trainer.cli import main
from trainer.program import PROGRAM_VARIABLE

if __name__ == "__main__":
    # Taken out: a process that this one starts is not what the user called.
    main(prog_name=os.environ.pop(PROGRAM_VARIABLE, None))
