"""SIGTERM and Ctrl-C: kept, told, and given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from tser_cli.base.errors import Interrupted
from tser_cli.engine.runs.stop import StopRequest

BOTH = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_kept_and_told(number: signal.Signals) -> None:
    told: list[str] = []
    with StopRequest(told.append) as stop:
        assert not stop.requested
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number
        with pytest.raises(Interrupted):
            stop.check()
    assert len(told) == 1 and "stopping after this step" in told[0]


@pytest.mark.parametrize("first", BOTH)
def test_a_later_sigterm_changes_nothing(first: signal.Signals) -> None:
    told: list[str] = []
    with StopRequest(told.append) as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == first
    assert len(told) == 1


def test_the_handlers_before_are_put_back_after_an_error_too() -> None:
    before = handlers()
    with pytest.raises(KeyError), StopRequest(lambda text: None):
        assert handlers() != before
        raise KeyError
    assert handlers() == before


def test_one_request_inside_another_gives_back_in_order() -> None:
    before = handlers()
    with StopRequest(lambda text: None) as outer:
        with StopRequest(lambda text: None) as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.requested
        assert not outer.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.signal == signal.SIGINT
    assert handlers() == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before, inside = handlers(), []

    def enter() -> None:
        with StopRequest(lambda text: None):
            inside.append(handlers())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [before]


SECOND_CTRL_C = """
import os, signal
from tser_cli.engine.runs.stop import StopRequest
with StopRequest(lambda text: print(text, flush=True)):
    os.kill(os.getpid(), signal.{first})
    print("going on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_second_ctrl_c_quits_at_once(first: str) -> None:
    program = SECOND_CTRL_C.format(first=first)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 130
    assert "going on" in result.stdout
    assert "still here" not in result.stdout


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_closed_terminal_is_a_request_to_stop_but_not_under_nohup(
    before: signal.Handlers,
) -> None:
    found = signal.signal(signal.SIGHUP, before)  # the tests themselves may run under nohup
    try:
        with StopRequest(lambda text: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal == (None if before is signal.SIG_IGN else signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, found)
