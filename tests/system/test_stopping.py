"""A first signal stops, at once or when the deferred part has ended; handlers come back."""

import os
import signal
import threading

import pytest

from synthkd.system.stopping import Stopped, defer_signals, pending_signal, stoppable


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def test_a_signal_stops_at_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$") as caught, stoppable():
        send(signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    assert not isinstance(caught.value, Exception)
    assert signal.getsignal(signal.SIGTERM) == before
    assert pending_signal() == 0


def test_a_signal_waits_for_the_end_of_the_deferred_part() -> None:
    steps = []

    def step() -> None:
        send(signal.SIGINT)
        steps.append(pending_signal())

    with pytest.raises(Stopped, match="SIGINT"), stoppable(), defer_signals():
        step()
    assert steps == [signal.SIGINT]
    with stoppable(), defer_signals():
        assert pending_signal() == 0


def test_after_a_first_signal_the_second_has_its_default_action(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = []

    def step() -> None:
        send(signal.SIGTERM)
        handlers.append(signal.getsignal(signal.SIGINT))

    with pytest.raises(Stopped), stoppable(), defer_signals():
        step()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(Stopped), stoppable(), defer_signals():
        step()
    assert handlers == [signal.SIG_DFL, signal.SIG_IGN]


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_change_no_handler() -> None:
    handlers = []

    def work() -> None:
        with stoppable():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_the_message_names_the_last_step() -> None:
    assert str(Stopped(signal.SIGINT, 12)) == "stopped by SIGINT after step 12"
