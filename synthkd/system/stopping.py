"""Stop on request: on Ctrl-C, a scheduler's SIGTERM or a closed terminal a run finishes its step and saves it.

Handlers are installed around a command of the command line only. A job that is called from Python leaves the caller's
handlers alone.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the process to stop. It is no Exception, so that no handler of errors catches it.

    Args:
        signum: the signal.
        step: the last step that was finished and saved, if a training was running.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by {signal.Signals(signum).name}{after}")
        self.signum = signum


@dataclass
class _Request:
    """The signal that arrived (0: none), and whether it waits for the end of `defer_signals`."""

    signum: int = 0
    deferred: bool = False


_request = _Request()  # global, since signal handlers belong to the whole process


@contextmanager
def stoppable() -> Iterator[None]:
    """Context manager: the first signal raises `Stopped`, at once or at the end of `defer_signals`; a second one kills.

    Signals that are ignored, as under nohup, stay ignored. Outside the main thread it does nothing.
    """
    # Python runs handlers in the main thread only, and refuses to install them elsewhere.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    handled = [signum for signum, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    # torchrun forwards the signal that the terminal has already sent to its processes, so a second one is no second
    # request. torchrun itself kills processes that do not end.
    second = signal.SIG_IGN if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL

    def stop(signum: int, _: FrameType | None) -> None:
        # Whoever sends a second signal does not want to wait for the end of the step.
        for each in handled:
            signal.signal(each, second)
        _request.signum = signum
        if signum == signal.SIGHUP:
            _release_closed_terminal()
        if not _request.deferred:
            raise Stopped(signum)

    try:
        for signum in handled:
            signal.signal(signum, stop)
        yield
    finally:
        for signum in handled:
            signal.signal(signum, before[signum])
        _request.signum = 0


@contextmanager
def defer_signals() -> Iterator[None]:
    """Context manager in which a signal waits: `pending_signal` returns it, the end of the block raises `Stopped`."""
    _request.deferred = True
    try:
        yield
    finally:
        _request.deferred = False
    # Not in `finally`: an error inside the block is more important than the request to stop.
    if _request.signum:
        raise Stopped(_request.signum)


def pending_signal() -> int:
    """Number of the signal that waits, or 0."""
    return _request.signum


def _release_closed_terminal() -> None:
    """Point stdout and stderr to /dev/null if their terminal is gone: a failed print would look like a failed run."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    for descriptor, state in poll.poll(0):
        if state & (select.POLLHUP | select.POLLERR):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
