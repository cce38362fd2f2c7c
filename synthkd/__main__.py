"""`python -m synthkd`, and `torchrun -m synthkd` for several processes."""

import sys

from synthkd.pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
