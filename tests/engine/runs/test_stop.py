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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_kept_and_told(number: signal.Signals, code: int) -> None:
    told: list[str] = []
    with StopRequest(told.append) as stop:
        assert not stop.requested
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number
        with pytest.raises(Interrupted) as error:
            stop.check()
    assert error.value.exit_code == code
    assert len(told) == 1
    assert "stopping after this step" in told[0]


@pytest.mark.parametrize("first", BOTH)
def test_a_later_sigterm_changes_nothing(first: signal.Signals) -> None:
    told: list[str] = []
    with StopRequest(told.append) as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == first
    assert len(told) == 1


def test_the_handlers_before_are_put_back() -> None:
    before = handlers()
    with StopRequest(lambda text: None):
        assert handlers() != before
    assert handlers() == before


def test_the_handlers_are_put_back_after_an_error() -> None:
    before = handlers()
    with pytest.raises(Interrupted), StopRequest(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
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
def test_a_closed_terminal_is_a_request_to_stop() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    with StopRequest(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interrupted) as error:
            stop.check()
    assert error.value.exit_code == 129


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_under_nohup_a_closed_terminal_is_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(lambda text: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
