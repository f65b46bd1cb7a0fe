"""What became of joining, for a person and for a program.

    db1 (10.0.0.5): joined; the server says: welcome, alice
    db1 (10.0.0.5): refused: the invite has expired; ask its operator for a new one ...

The exit code is that of the first request by the new key where the server says that it is enrolled,
else 1 where it has answered, else 3 where a datagram was sent, else 4.
"""

from collections.abc import Iterator
from typing import Any

from keys.trouble import ExitCode
from spa_client.carriers import Answer, Silence
from spa_client.join import Joining
from spa_client.outcome import Line, clock_lead_s
from spa_protocol.reason import Status


def exit_code(joining: Joining) -> ExitCode:
    """How the program ends: see the head of this file."""
    if joining.proof is not None:
        return ExitCode.FINE if joining.proof.is_shut else joining.proof.exit_code
    if joining.problem is not None:
        return ExitCode(joining.problem.exit_code)
    if joining.answer is not None:
        return ExitCode.REFUSED
    return ExitCode.NO_ANSWER if joining.was_sent else ExitCode.TROUBLE


def lines(joining: Joining) -> Iterator[Line]:
    """What a person reads."""
    answer = joining.answer
    if answer is None:
        yield _of_silence(joining)
    elif answer.reply.status is Status.JOINED:
        yield from _of_joined(joining, answer)
    else:
        yield _of_answer(joining, answer)


def _of_joined(joining: Joining, answer: Answer) -> Iterator[Line]:
    plan, name, proof = joining.plan, joining.plan.host.name, joining.proof
    said = f"; the server says: {answer.reply.message}" if answer.reply.message else ""
    yield Line(f"{_at(joining, answer)}: joined{said}", good=True)
    where = f"{name} is in {plan.config}, its key {joining.key.public.key_id} in {plan.key}"
    yield Line(where, good=True)
    if proof is None:
        if joining.problem is not None:
            yield Line(f"{name}: joined, but the key could not be tried: {joining.problem}")
        return
    if proof.is_shut:
        if plan.options.wants_ssh:
            yield Line(f"the key works; now: ssh {name}", good=True)
            return
        # What its roles allow, the server tells nobody; an example of a port would be taken for it.
        now = f"now: spa-client knock {name} ACCESS, such as tcp/5432 (ask its operator which)"
        yield Line(f"the key works; {now}", good=True)
        ssh = "if that is ssh, have it knock by itself: spa-client ssh-config --install"
        yield Line(ssh, good=True)
        return
    if proof.exit_code is ExitCode.REFUSED and not proof.wish.closing:
        yield Line(f"{name}: joined, but not all that was asked for is allowed yet")
    elif proof.exit_code is not ExitCode.FINE:
        yield Line(f"{name}: joined, but a first request by the new key failed")
    yield from proof.lines()


def _of_answer(joining: Joining, answer: Answer) -> Line:
    at, message = _at(joining, answer), answer.reply.message
    key_id = joining.key.public.key_id
    match answer.reply.status:
        case Status.PENDING:
            what = f"waits for approval, key id {key_id}"
            hint = f"its operator runs: spa-keys approve {key_id}; then knock, or run this again"
        case Status.CLOCK:
            lead_s = clock_lead_s(answer)
            side = "behind" if lead_s > 0 else "ahead of"
            what = f"refused: your clock is {abs(lead_s):.0f} s {side} the server's"
            hint = "set the clock right and run this again"
        case Status.JOIN_REFUSED:
            what = f"refused: {message or 'the invite is not good'}"
            hint = "ask its operator for a new one, and tell them if this surprises you"
        case _:
            what = f"the server cannot do it now: {message or 'it does not say why'}"
            hint = "run this again after a while"
    return Line(f"{at}: {what}; {hint}")


def _of_silence(joining: Joining) -> Line:
    plan, name = joining.plan, joining.plan.host.name
    silent = [r for r in joining.results if isinstance(r, Silence)]
    where = ", ".join(f"{s.target}{f': {s.error}' if s.error else ''}" for s in silent)
    if not joining.was_sent:
        return Line(f"cannot send to {name}: {where}; check the network and the address")
    return Line(
        f"no answer from {name} ({where}, udp/{plan.targets[0].port}); run this again, which is "
        f"safe: the key stays in {plan.key}. Should it stay silent: the invite may have been "
        "revoked or have expired long ago, UDP be blocked on the way, or this clock be minutes off"
    )


def _at(joining: Joining, answer: Answer) -> str:
    name, target = joining.plan.host.name, str(answer.target)
    return target if target == name else f"{name} ({target})"


def as_json(joining: Joining) -> dict[str, Any]:
    """One object; `first_request` is as `spa-client knock --json` prints it, or null."""
    answer, plan = joining.answer, joining.plan
    return {
        "host": plan.host.name,
        "result": _result_word(joining),
        "exit_code": int(exit_code(joining)),
        "message": answer.reply.message if answer else None,
        "key_id": joining.key.public.key_id,
        "key": str(plan.key) if plan.key.exists() else None,
        "config": str(plan.config),
        "first_request": joining.proof.as_json() if joining.proof else None,
        "problem": str(joining.problem) if joining.problem else None,
    }


def _result_word(joining: Joining) -> str:
    if joining.status is not None:
        return joining.status.name.lower().replace("_", " ")
    return "no answer" if joining.was_sent else "not sent"
