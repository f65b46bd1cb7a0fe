"""The table [anomalies] of server.toml: what it may say, and how anything else is refused."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from keys.tomlfile import FileProblem
from spa_server.anomaly.settings import Settings, Watching
from spa_server.config import _AnomaliesTable, load_config

MAN = Path(__file__).parent.parent / "man" / "spa-server.8"


def test_what_is_not_said_is_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "server.toml").touch()
    assert load_config(tmp_path / "server.toml").anomalies == Watching()


def test_everything_can_be_said(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        "[anomalies]\nwatch = false\nthreshold = 0.8\nlearning_days = 9\n"
        'trusted = ["192.0.2.0/28"]\nhook = "/etc/spa/hook"\nhook_timeout = "3s"\n'
    )
    settings = Settings(threshold=0.8, learning_days=9, trusted=(ip_network("192.0.2.0/28"),))
    expected = Watching(
        watch=False, hook=Path("/etc/spa/hook"), hook_timeout_s=3, settings=settings
    )
    assert load_config(file).anomalies == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("threshold = 0", "anomalies.threshold: expected a number > 0"),
        ("threshold = 1.5", "anomalies.threshold: expected a number < 1"),
        ("learning_days = 0", "anomalies.learning_days: expected a number >= 1"),
        ('hook = "hook"', "anomalies.hook: 'hook' is no absolute path"),
        ('hook_timeout = "900s"', "anomalies.hook_timeout: '900s' is not between 1s and 300s"),
        ('hook_timeout = "soon"', "anomalies.hook_timeout: "),
        ('trusted = ["1.2.3.4/8"]', "anomalies.trusted: "),
        ("treshold = 1", "anomalies.treshold: is not known; expected watch, threshold"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f"[anomalies]\n{line}\n")
    with pytest.raises(FileProblem) as raised:
        load_config(file)
    assert words in str(raised.value)


def test_every_key_is_in_the_man_page() -> None:
    text = MAN.read_text(encoding="utf-8")
    assert [key for key in _AnomaliesTable.__struct_fields__ if f".BR {key} " not in text] == []
