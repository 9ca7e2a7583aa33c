"""Cost profiles: the constants that papers print, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tser_cli.base.errors import ConfigError
from tser_cli.energy.prices import PROFILES, load_profile

OWN = """
name = "edge-chip"
mac_pj = 2
ac_pj = 0.5
neuron_update_pj = 1.5
source = "our lab, 2026"
technology = "22 nm"
"""


@pytest.mark.parametrize(
    ("name", "mac", "ac", "update"),
    [
        ("horowitz-45nm-fp32", 4.6, 0.9, None),
        ("horowitz-45nm-fp16", 1.5, 0.4, None),
        ("horowitz-45nm-int8", 0.3, 0.1, None),
        ("loihi", 23.6, 23.6, 81.0),
    ],
)
def test_constants(name: str, mac: float, ac: float, update: float | None) -> None:
    profile = load_profile(name)
    assert not profile.measured and profile.step_seconds is None
    assert (profile.mac_pj, profile.ac_pj, profile.neuron_update_pj) == (mac, ac, update)
    assert profile.name == name
    assert profile.source and profile.technology
    assert ("no multiply-accumulate" in profile.note) == (name == "loihi")


def test_a_profile_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    for update in (1.5, None):
        path.write_text(OWN if update else OWN.replace("neuron_update_pj = 1.5\n", ""))
        profile = load_profile(str(path))
        assert (profile.name, profile.mac_pj, profile.ac_pj) == ("edge-chip", 2.0, 0.5)
        assert profile.neuron_update_pj == update
        assert (profile.measured, profile.accumulate_pj(narrow=True)) == (False, 0.5)
    path.write_text(OWN + "measured = true\nstep_seconds = 0.001\nac16_pj = 0.25\n")
    profile = load_profile(str(path))
    assert (profile.measured, profile.step_seconds) == (True, 0.001)
    assert [profile.accumulate_pj(narrow) for narrow in (False, True)] == [0.5, 0.25]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("horowitz-45nm-fp23")
    message = str(caught.value)
    assert 'did you mean "horowitz-45nm-fp' in message
    assert all(name in message for name in PROFILES)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mac_pj = 2\n", "", "mac_pj: Field required"),
        ("mac_pj = 2", "mac_pj = 0", "mac_pj: .*greater than 0"),
        ("mac_pj = 2", "mac_pj = inf", "mac_pj: .*finite"),
        ("mac_pj = 2", 'mac_pj = "2"', "mac_pj: .*valid number"),
        ('source = "our lab, 2026"', 'source = ""', "source: "),
        ("ac_pj = 0.5", "ac_jp = 0.5", 'unknown key "ac_jp" .did you mean "ac_pj"'),
        ('name = "edge-chip"', 'name = "loihi"', 'name "loihi" belongs'),
        ("mac_pj = 2", "mac_pj =", "can't be read"),
    ],
)
def test_a_bad_file_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "own.toml"
    assert old in OWN
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('mac_pj = -1\nname = ""\nsource = "x"\ncolour = "red"\n')
    with pytest.raises(ConfigError) as caught:
        load_profile(str(path))
    keys = ("mac_pj", "ac_pj", "name", "technology", "colour")
    assert all(key in str(caught.value) for key in keys)


def test_a_file_that_is_no_text_and_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read"):
        load_profile(str(path))
    with pytest.raises(ConfigError, match="unknown cost profile"):
        load_profile(str(tmp_path))
