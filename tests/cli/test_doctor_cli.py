"""`tser doctor` at the command line: the list, and its exit code."""

from __future__ import annotations

import json

import pytest

from tser_cli.cli import app
from tser_cli.engine.commands import doctor
from tser_cli.engine.commands.doctor import NOTE, OK, WRONG, Check


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["tser", "doctor", *words])
    with pytest.raises(SystemExit) as stop:
        app.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(("state", "code"), [(OK, 0), (NOTE, 0), (WRONG, 4)])
def test_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    checks = (Check("one", OK, "fine"), Check("two", state, "[x]\x1b", "mend it"))
    monkeypatch.setattr(doctor, "examine", lambda request: checks)
    assert run(monkeypatch) == code
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["ok", "one", "fine"]
    assert lines[1] == [state, "two", "[x]\\x1b"]
    assert lines[2] == ["to", "do:", "mend", "it"]
    assert run(monkeypatch, "--json") == code
    assert [check["state"] for check in json.loads(capsys.readouterr().out)] == [OK, state]
