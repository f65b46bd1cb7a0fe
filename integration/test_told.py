"""What an operator is told of by status and check: a trial, a broken policy, a restore, a key."""

import json
from datetime import UTC, datetime
from typing import Any

from integration.lab import Lab
from integration.site import Site


def check(site: Site) -> dict[str, dict[str, Any]]:
    """The findings by their names; its exit status must go with them."""
    done = site.server("check", "--json", check=False)
    told = json.loads(done.stdout)
    assert done.returncode == any(one["severity"] != "note" for one in told)
    return {one["name"]: one for one in told}


def test_a_trial_is_told_with_its_end(lab: Lab) -> None:
    site = Site(lab, lab.host("server"))
    site.apply_gate()
    site.start()
    assert "TRIAL" not in site.server("status").stderr
    assert (site.status()["gate_on_trial"], site.status()["trial_ends_at"]) == (False, None)
    site.apply_gate("--confirm-within", "5m")
    told = site.status()
    ends_in = datetime.fromisoformat(told["trial_ends_at"]) - datetime.now(UTC)
    assert told["gate_on_trial"]
    assert 0 < ends_in.total_seconds() <= 300
    said = site.server("status").stderr
    assert f"ON TRIAL until {told['trial_ends_at']}; to keep it: spa-server gate confirm" in said
    assert told["trial_ends_at"] in check(site)["gate-not-confirmed"]["what"]
    site.server("gate", "confirm")
    assert site.status()["gate_on_trial"] is False


def test_a_broken_policy_is_one_finding_among_others(lab: Lab) -> None:
    site = Site(lab, lab.host("server"))
    site.apply_gate()
    before = set(check(site))
    assert {"nobody-enrolled", "daemon-not-running"} <= before
    unknown_service = site.policy.replace('services = ["postgres"]', 'services = ["nonesuch"]')
    for broken in ("[roles", unknown_service):
        site.write_policy(broken)
        found = check(site)
        assert {"policy-unusable", "nobody-enrolled", "daemon-not-running"} <= set(found)
        assert "gate-differs" not in found
        assert "spa-server policy test" in found["policy-unusable"]["advice"]
    (site.directory / "policy.toml").unlink()
    assert "policy-unusable" in check(site)
    site.write_policy(site.policy)
    site.config.write_text(site.config.read_text() + 'observe = ["nonesuch"]\n')
    assert "nonesuch" in check(site)["policy-unusable"]["what"]


def test_a_key_that_cannot_be_used_is_a_finding(lab: Lab) -> None:
    site = Site(lab, lab.host("server"))
    (key,) = site.directory.glob("*.key")
    key.write_text(key.read_text()[:40])
    found = check(site)
    assert {"server-key-unusable", "nobody-enrolled", "gate-not-loaded"} <= set(found)
    key.unlink()
    assert "spa-server init" in check(site)["server-key-unusable"]["advice"]


def test_after_a_restore_nobody_is_heard_which_is_told_and_nothing_was_broken_off(
    lab: Lab,
) -> None:
    site = Site(lab, lab.host("server"))
    site.enrol("alice", "ops")
    site.apply_gate()
    site.start()
    assert site.status()["nobody_heard_until"] is None
    file = site.directory / "backup.tar"
    site.server("backup", str(file))
    site.stop()
    said = site.server("restore", str(file), "--yes").stderr
    assert "NOBODY IS HEARD until " in said
    site.start()
    until = site.status()["nobody_heard_until"]
    assert until[:16] in said
    assert f"NOBODY IS HEARD until {until}" in site.server("status").stderr
    assert until in check(site)["nobody-heard"]["what"]
    assert site.events("daemon.started")[-1]["reason"] is None
