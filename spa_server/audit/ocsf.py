"""Lines of the record as events of the Open Cybersecurity Schema Framework, version 1.5.0.

    knock.*, join.*, close.asked, hole.*    Authentication (3002)
    connection.*                            Network Activity (4001), profile security_control

Other lines have no counterpart there. Times are milliseconds since the epoch. What the schema has
no place for stands in `unmapped`. https://schema.ocsf.io/1.5.0/classes/network_activity
"""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final

import msgspec

from keys.when import rfc3339
from spa_protocol import __version__
from spa_server.audit.record import Event

VERSION: Final = "1.5.0"
AUTHENTICATION: Final = 3002
NETWORK_ACTIVITY: Final = 4001
_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}
_SUCCESS: Final = 1
_FAILURE: Final = 2
_INBOUND: Final = 1
_INFORMATIONAL: Final = 1
_LOW: Final = 2
_MEDIUM: Final = 3
_OTHER: Final = 99


@dataclass(frozen=True, slots=True)
class _Kind:
    """Numbers of the schema: `action` and `disposition` are of the profile security_control."""

    activity: int
    status: int
    severity: int = _INFORMATIONAL
    action: int = 0
    disposition: int = 0


_LOGON, _LOGOFF = 1, 2
_OPEN, _CLOSE, _RESET, _REFUSE = 1, 2, 3, 5
_ALLOWED, _DENIED, _OBSERVED = 1, 2, 3
_IS_ALLOWED, _DROPPED, _LOGGED, _REVOKED = 1, 6, 17, 24

_KINDS: Final[dict[str, _Kind]] = {
    Event.KNOCK_ACCEPTED: _Kind(_LOGON, _SUCCESS),
    Event.KNOCK_REFUSED: _Kind(_LOGON, _FAILURE, _LOW),
    Event.JOIN_ACCEPTED: _Kind(_OTHER, _SUCCESS),
    Event.JOIN_REFUSED: _Kind(_OTHER, _FAILURE, _LOW),
    Event.CLOSE_ASKED: _Kind(_LOGOFF, _SUCCESS),
    Event.HOLE_OPENED: _Kind(_OTHER, _SUCCESS),
    Event.HOLE_RENEWED: _Kind(_OTHER, _SUCCESS),
    Event.HOLE_USED: _Kind(_OTHER, _SUCCESS),
    Event.HOLE_CLOSED: _Kind(_LOGOFF, _SUCCESS),
    Event.HOLE_EXPIRED: _Kind(_LOGOFF, _SUCCESS),
    Event.HOLE_FAILED: _Kind(_OTHER, _FAILURE, _MEDIUM),
    Event.CONNECTION_PERMITTED: _Kind(
        _OPEN, _SUCCESS, action=_ALLOWED, disposition=_IS_ALLOWED
    ),
    Event.CONNECTION_ENDED: _Kind(_CLOSE, _SUCCESS, action=_ALLOWED, disposition=_IS_ALLOWED),
    Event.CONNECTION_SEVERED: _Kind(
        _RESET, _SUCCESS, _LOW, action=_DENIED, disposition=_REVOKED
    ),
    Event.CONNECTION_DENIED: _Kind(_REFUSE, _FAILURE, _LOW, _DENIED, _DROPPED),
    Event.CONNECTION_WOULD_DENY: _Kind(_OPEN, _SUCCESS, _LOW, _OBSERVED, _LOGGED),
}  # fmt: skip

_GROUPS: Final = ("knock.", "join.", "close.", "hole.", "connection.")


def event_of(line: dict[str, Any]) -> dict[str, Any] | None:
    """One line (spa_server/audit/export.py) as an event; None where there is no class for it."""
    kind = _kind_of(line["event"])
    if kind is None:
        return None
    detail = _detail(line["detail"])
    is_connection = line["event"].startswith("connection.")
    class_uid = NETWORK_ACTIVITY if is_connection else AUTHENTICATION
    event: dict[str, Any] = {
        "activity_id": kind.activity,
        "category_uid": class_uid // 1000,
        "class_uid": class_uid,
        "type_uid": class_uid * 100 + kind.activity,
        "severity_id": kind.severity,
        "status_id": kind.status,
        "time": line["at_us"] // 1000,
        "metadata": _metadata(line, is_connection=is_connection),
        "message": line["event"],
        "unmapped": _unmapped(line, detail),
    }
    if kind.activity == _OTHER:
        event["activity_name"] = line["event"]
    if line["reason"]:
        event["status_detail"] = line["reason"]
    count = line.get("count") or detail.get("further")
    if isinstance(count, int) and count > 0:
        event["count"] = count
    event |= _network(line, detail, kind) if is_connection else _authentication(line, detail)
    return event


def _kind_of(event: str) -> _Kind | None:
    """An event that has no row above, but is of such a group, is `Other` and of unknown status."""
    of_a_class = event.startswith(_GROUPS)
    return _KINDS.get(event, _Kind(_OTHER, 0)) if of_a_class else None


def _detail(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}


def _metadata(line: dict[str, Any], *, is_connection: bool) -> dict[str, Any]:
    log = "record" if "digest" in line else "denials"
    metadata = {
        "version": VERSION,
        "product": {"name": "spaknock", "vendor_name": "spaknock", "version": __version__},
        "uid": f"{log}-{line['id']}",
        "event_code": line["event"],
        "log_name": log,
        "original_time": rfc3339(line["at_us"]),
    }
    return metadata | ({"profiles": ["security_control"]} if is_connection else {})


def _unmapped(line: dict[str, Any], detail: dict[str, Any]) -> dict[str, Any]:
    names = ("identity", "key_id", "access", "grant_id", "rule")
    named = {name: line[name] for name in names if line.get(name) is not None}
    return named | ({"detail": detail} if detail else {})


def _authentication(line: dict[str, Any], detail: dict[str, Any]) -> dict[str, Any]:
    user: dict[str, Any] = {"name": line["identity"] or "unknown"}
    if line["key_id"]:
        user["credential_uid"] = line["key_id"]
    event: dict[str, Any] = {
        "user": user,
        "is_remote": True,
        "auth_protocol_id": _OTHER,
        "auth_protocol": "single packet authorization",
        "service": {"name": "spa-server"},
    }
    return event | _endpoints(line, detail, None)


def _network(line: dict[str, Any], detail: dict[str, Any], kind: _Kind) -> dict[str, Any]:
    protocol, _, port = (line["access"] or "").partition("/")
    event: dict[str, Any] = {"action_id": kind.action, "disposition_id": kind.disposition}
    event |= _endpoints(line, detail, _port(port))
    if protocol in _PROTOCOLS:
        event["connection_info"] = {
            "protocol_name": protocol,
            "protocol_num": _PROTOCOLS[protocol],
            "direction_id": _INBOUND,
        }
    if line.get("rule"):
        event["firewall_rule"] = {"name": line["rule"]}
    event.setdefault("dst_endpoint", {"svc_name": "spa-server"})
    traffic = {
        name: detail[name]
        for name in ("bytes_in", "bytes_out", "packets_in", "packets_out")
        if isinstance(detail.get(name), int)
    }
    if traffic:
        event["traffic"] = traffic
    duration_s = detail.get("duration_s")
    if isinstance(duration_s, int | float):
        event["duration"] = round(duration_s * 1000)
    return event


def _endpoints(
    line: dict[str, Any], detail: dict[str, Any], target_port: int | None
) -> dict[str, Any]:
    ends = {
        "src_endpoint": (line["source"], _port(detail.get("source_port"))),
        "dst_endpoint": (line["target"], target_port),
    }
    return {name: _endpoint(at, port) for name, (at, port) in ends.items() if at}


def _endpoint(at: str, port: int | None) -> dict[str, Any]:
    """By its address; or by name, as for the networks that many denials are folded into."""
    if not _is_address(at):
        return {"name": at}
    return {"ip": at} if port is None else {"ip": at, "port": port}


@lru_cache(maxsize=4096)
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _port(value: object) -> int | None:
    """A single port; a range has none."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and int(text) <= 65535 else None
