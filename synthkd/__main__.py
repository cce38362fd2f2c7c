"""Entry point of `python -m synthkd`, and of `torchrun -m synthkd` for several processes."""

import sys

from synthkd.pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
