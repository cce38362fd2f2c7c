"""Stopping on request: Ctrl-C, a scheduler's SIGTERM and a closed terminal let what is begun be kept before the end.

Handlers stand around a command of the command line only; whoever calls a job from Python keeps their own.
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
    """A signal asked to stop. No Exception, lest something on the way take it for a failure.

    Args:
        signum: the signal.
        step: the last one that was finished and kept, where a training was under way.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by {signal.Signals(signum).name}{after}")
        self.signum = signum


@dataclass
class _Request:
    signum: int = 0
    held: bool = False


_request = _Request()  # signals are the whole process's, and so is this


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first signal raises `Stopped`, at once or at the end of what holds it; a second one kills.

    Signals that are ignored, as nohup does, stay ignored. In another thread than the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    caught = [each for each, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    # torchrun passes on what the terminal sent to its processes already, and itself kills those that do not end
    second = signal.SIG_IGN if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL

    def stop(signum: int, _: FrameType | None) -> None:
        for each in caught:
            signal.signal(each, second)
        _request.signum = signum
        if signum == signal.SIGHUP:
            _let_closed_terminal_go()
        if not _request.held:
            raise Stopped(signum)

    try:
        for each in caught:
            signal.signal(each, stop)
        yield
    finally:
        for each in caught:
            signal.signal(each, before[each])
        _request.signum = 0


@contextmanager
def held() -> Iterator[None]:
    """Inside, a signal waits: `asked` tells of it, and the end raises `Stopped` if nobody has."""
    _request.held = True
    try:
        yield
    finally:
        _request.held = False
    if _request.signum:
        raise Stopped(_request.signum)


def asked() -> int:
    """The signal that waits, or 0."""
    return _request.signum


def _let_closed_terminal_go() -> None:
    """Write nowhere what would go to a terminal that is gone: an error of its would be taken for one of the run's."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    for descriptor, state in poll.poll(0):
        if state & (select.POLLHUP | select.POLLERR):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
