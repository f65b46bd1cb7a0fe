"""What an operator may ask a running daemon: the handlers behind the control socket."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from keys.when import rfc3339
from spa_protocol import __version__
from spa_server import clock, marks, sessionlist, whois
from spa_server.activity import activity
from spa_server.alignment.people import NEARLY_FULL_PERCENT
from spa_server.alignment.standing import config_is_current
from spa_server.audit import answering
from spa_server.config import Config, Mode
from spa_server.control import Handler, Request
from spa_server.firewall.backstop import Standing
from spa_server.firewall.elements import LiveHole
from spa_server.firewall.plan import Observed
from spa_server.grants import Grant
from spa_server.guard import Guard
from spa_server.hole import Hole


def handlers(guard: Guard, after: Callable[[], None]) -> dict[str, Handler]:
    """One handler for each `do`. `after` lets the daemon set its timer anew."""

    def acting(act: Callable[[Guard, Request], dict[str, Any]]) -> Handler:
        def handle(request: Request) -> dict[str, Any]:
            guard.look_around()
            try:
                return act(guard, request)
            finally:
                after()

        return handle

    return {
        "status": acting(_status),
        "holes": acting(_holes),
        "whois": acting(_whois),
        "sessions": acting(_sessions),
        "cut": acting(_cut),
        "activity": acting(activity),
        "close": acting(_close),
        "reload": acting(_reload),
        "confirm": acting(_confirm),
        "take-back": acting(_take_back),
        "removing": acting(_removing),
        "record": acting(_record),
        "reload-keys": acting(lambda _guard, _request: {}),
    }


def readers(config: Config) -> dict[str, Handler]:
    """Those that only read files: each is called in a thread."""
    return {"audit": lambda request: answering.answer(config.database, request)}


def is_roots(request: dict[str, Any]) -> bool:
    """Whether it puts the gate in force, or decides about a gate on trial: root's marks say that
    one is wanted, and nobody of the group `spa` has a say in it."""
    return request.get("do") in {"confirm", "take-back"} or bool(request.get("gate"))


def _status(guard: Guard, _request: Request) -> dict[str, Any]:
    is_loaded = guard.gate.is_loaded()
    counters = guard.gate.counters() if is_loaded else {}
    return {
        "version": __version__,
        "pid": os.getpid(),
        "state": "serving" if guard.is_serving else "starting",
        "started_at": rfc3339(guard.started_at_us),
        "now": rfc3339(clock.now_us()),
        "knock_port": guard.config.knock_port,
        "capture": guard.config.capture,
        "config_is_current": config_is_current(guard.gatehouse.config),
        "gate": "loaded" if is_loaded else "not loaded",
        **_doubts(guard),
        **_mode(guard.gatehouse.observed),
        **_trial(guard),
        "held_back": None if (held := guard.gatehouse.held_back) is None else str(held),
        "nobody_heard_until": _deaf_until(guard),
        "keys_heard": len(guard.admission),
        "keys_at_most": guard.config.max_keys,
        "keys_room": _room(len(guard.admission), guard.config.max_keys),
        "grants": len(guard.keeper.book),
        "holes": len(guard.keeper.book.holes()),
        "connections": len(guard.connections.live),
        "policy": _policy(guard),
        "policy_digest": guard.policy.digest,
        "reviews_due": len(guard.policy.reviews_due(datetime.now(UTC).date())),
        "roles": len(guard.policy.roles),
        "remembered": len(guard.reception.window),
        "waiting": len(guard.waiting),
        **{name: count.packets for name, count in sorted(counters.items())},
        "hindered": guard.answers_trouble,
        "lost": guard.recorder.lost,
        "record": "behind" if guard.ledger.is_behind else "written",
        "record_trouble": guard.ledger.trouble,
    }


def _doubts(guard: Guard) -> dict[str, Any]:
    """Since when the gate is in doubt, and why; and what stands behind it."""
    faults, backstop = guard.faults, guard.gate.backstop
    standing = backstop.standing
    if standing is Standing.HELD and not backstop.is_own:
        standing = Standing.TAKEN
    return {
        "gate_in_doubt_since": rfc3339(faults.since_us) if faults.since_us is not None else None,
        "gate_in_doubt": faults.why,
        "backstop": standing.value,
        "backstop_absence": backstop.absence or None,
        "backstop_trouble": backstop.trouble,
    }


def _room(heard: int, most: int) -> str:
    """What `check` finds as registry-nearly-full (alignment/people.py)."""
    if heard * 100 < most * NEARLY_FULL_PERCENT:
        return "enough"
    left = max(0, most - heard)
    return f"nearly full: {left} more can be enrolled; set a larger max_keys and restart"


def _policy(guard: Guard) -> str:
    problem = guard.rulebook.problem
    if problem is None:
        return "as in its file when it was read"
    return f"the last good one, since {rfc3339(guard.rulebook.refused_at_us)}, for {problem}"


def _mode(observed: Observed) -> dict[str, Any]:
    mode = Mode.OBSERVE if observed.everything else Mode.ENFORCE
    accesses = [] if observed.everything else sorted(observed.accesses)
    return {"mode": mode.value, "observed": list(map(str, accesses))}


def _trial(guard: Guard) -> dict[str, Any]:
    trial = marks.waiting(guard.gatehouse.config)
    until_us = None if trial is None else trial.until_us
    return {
        "gate_on_trial": guard.gatehouse.is_on_trial,
        "trial_ends_at": None if until_us is None else _time(until_us),
    }


def _time(at_us: int) -> str:
    """One that stands in a file, where anything may stand."""
    try:
        return rfc3339(at_us)
    except (ValueError, OverflowError, TypeError):
        return "nobody knows when"


def _deaf_until(guard: Guard) -> str | None:
    """Until when no knock can be fresh and new at once: after a restore, a boot, a lost record."""
    floor_us = guard.floor_us
    return _time(floor_us) if floor_us > clock.now_us() else None


def _holes(guard: Guard, _request: Request) -> dict[str, Any]:
    live = {found.hole: found for found in guard.gate.live_holes()}
    return {"holes": [_hole(grant, live) for grant in guard.keeper.book]}


def _hole(grant: Grant, live: dict[Hole, LiveHole]) -> dict[str, Any]:
    found = [live[hole] for hole in grant.holes if hole in live]
    return {
        "grant": grant.grant_id,
        "identity": grant.identity,
        "key_id": grant.key_id,
        "source": str(grant.source),
        "target": str(grant.target),
        "access": str(grant.access),
        "rule": grant.rule,
        "once": grant.once,
        "sessions": grant.sessions.value,
        "opened_at": rfc3339(grant.opened_at_us),
        "expires_at": rfc3339(grant.expires_at_us),
        "remaining_s": round(max(0.0, grant.ends_at_s - clock.monotonic_s()), 1),
        "open": bool(found),
        "packets": sum(hole.packets for hole in found),
    }


def _whois(guard: Guard, request: Request) -> dict[str, Any]:
    return whois.answer(
        request,
        guard.connections,
        guard.keeper.book.holders,
        guard.policy,
        guard.gatehouse.observed,
    )


def _sessions(guard: Guard, request: Request) -> dict[str, Any]:
    return sessionlist.answer(guard.connections.ends, sessionlist.Choice(request), guard.severance)


def _cut(guard: Guard, request: Request) -> dict[str, Any]:
    choice = sessionlist.Choice(request)
    if choice.is_everything and not request.get("all"):
        raise ValueError("say which connections to cut, or all")
    return {"cut": guard.cut(choice, request.by)}


def _close(guard: Guard, request: Request) -> dict[str, Any]:
    wanted = set(request.get("grants", ()))
    identity = request.get("identity")
    grants = guard.keeper.book.where(
        lambda grant: (
            bool(request.get("all")) or grant.grant_id in wanted or grant.identity == identity
        )
    )
    return {"closed": guard.end(grants, "closed by the operator", request.by)}


def _reload(guard: Guard, request: Request) -> dict[str, Any]:
    guard.reload(request.by, gate_too=bool(request.get("gate")))
    return {"roles": len(guard.policy.roles)}


def _record(guard: Guard, _request: Request) -> dict[str, Any]:
    """The last line that this daemon wrote: `audit verify` holds the file against it."""
    head = guard.ledger.head
    return {"event_id": head.event_id, "digest": head.digest.hex()}


def _confirm(guard: Guard, request: Request) -> dict[str, Any]:
    guard.confirm(request.by)
    return {}


def _removing(guard: Guard, request: Request) -> dict[str, Any]:
    """The gate is about to be taken away: what the kernel tells of that does not say by whom."""
    guard.removing(request.by)
    return {}


def _take_back(guard: Guard, request: Request) -> dict[str, Any]:
    guard.take_back(request.by)
    return {"roles": len(guard.policy.roles)}
