"""The findings and the advice, for a person and for a program."""

from collections.abc import Iterable
from typing import Any

from spa_client.carriers import Answer
from spa_client.doctor.advice import Advice
from spa_client.doctor.findings import AddressFound, Examination, Finding, PortFound
from spa_client.outcome import result_json


def line(finding: Finding) -> str:
    """`ok   clock   within 1 s of the server's`."""
    return f"{finding.mark:<4} {finding.check:<7} {finding.text}"


def last_line(advice: Advice) -> str:
    """The advice, which begins like nothing else."""
    return f"advice: {advice.sentence}"


def as_json(found: Examination, findings: Iterable[Finding], advice: Advice) -> dict[str, Any]:
    """One object."""
    return {
        "host": found.host.name if found.host else found.written,
        "diagnosis": advice.diagnosis.value,
        "advice": advice.sentence,
        "exit_code": int(advice.exit_code),
        "key_id": found.key_id or None,
        "accesses": [str(access) for access in found.wish.accesses],
        "checks": [{"check": f.check, "mark": f.mark.value, "text": f.text} for f in findings],
        "clock_lead_s": None if found.lead_s is None else round(found.lead_s, 3),
        "addresses": [_address(address) for address in found.addresses],
    }


def _address(address: AddressFound) -> dict[str, Any]:
    heard = sum(isinstance(result, Answer) for result in address.probes)
    return {
        "address": str(address.target),
        "own_address": str(address.own) if address.own else None,
        "seen_sources": [str(seen) for seen in address.seen],
        "reply": result_json(address.result) if address.result else None,
        "probes": {"sent": len(address.probes), "answered": heard},
        "ports": [_port(port) for port in address.ports],
    }


def _port(port: PortFound) -> dict[str, Any]:
    return {
        "access": str(port.access),
        "reach": port.reach.value,
        "error": port.error or None,
        "took_ms": round(port.took_ms, 3) if port.took_ms else None,
    }
