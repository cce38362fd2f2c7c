"""Entry point of `python -m synthkd`, and of `torchrun -m synthkd` for several processes."""

import atexit
import os
import sys

from synthkd.pipelines.cli import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Threads of torch.distributed may still let go of tensors, which aborts an interpreter that is being taken
        # down: the process of a finished job would end with SIGABRT. So it ends here, with everything written.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
