"""What every command begins with."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tser_cli.base.errors import Interrupted
from tser_cli.base.progress import Silent
from tser_cli.data.base import Dataset
from tser_cli.engine.runs import opened
from tser_cli.engine.runs.opened import make_check_stop, prepare
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.settings.config import Config


class Others:
    """An accelerator of two processes, of which this is the second; the other was asked to stop."""

    num_processes, process_index = 2, 1


def test_the_data_the_device_and_where_messages_go(
    dataset: Dataset, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "load_dataset", lambda config: dataset)
    config, progress = make_config(), Silent()
    made = prepare(config, progress)
    assert (made.config, made.dataset, made.progress) == (config, dataset, progress)
    assert made.runtime.device.type == "cpu"


def test_a_request_to_stop_is_raised_from_the_next_check_on(runtime: Runtime) -> None:
    stop = StopRequest(lambda text: None)
    check_stop = make_check_stop(stop, runtime)
    check_stop()
    stop.signal = signal.SIGTERM
    for _ in range(2):
        with pytest.raises(Interrupted) as error:
            check_stop()
        assert error.value.exit_code == 143


def test_a_request_that_another_process_has_heard_counts_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = []

    def largest(self: Runtime, value: int) -> int:
        heard.append(value)
        return max(value, signal.SIGINT)

    monkeypatch.setattr(Runtime, "largest", largest)
    with pytest.raises(Interrupted) as error:
        make_check_stop(StopRequest(lambda text: None), Runtime(Others()))()
    assert error.value.exit_code == 130
    assert heard == [0]
