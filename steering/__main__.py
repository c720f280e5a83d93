"""`python -m steering` is the command `steering`; torchrun starts it this way."""

import sys

from steering.cli import main

if __name__ == "__main__":
    sys.exit(main())
