"""What people who mean harm do, as programs: `make attack`, or python -m integration.attacks NAME.

Each module here is one attack. Its docstring says who the attacker is and what they want; its `run`
carries it out against a host in network namespaces of the lab's own, and gives the figures by which
the defence is judged. An integration test calls the same `run`, so that what is tested is what was
done. The figures before and after stand in docs/threat-model.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that an attack ended with: `holds` where the defence did what it promises."""

    what: str
    value: float
    holds: bool

    def __str__(self) -> str:
        return f"{'held  ' if self.holds else 'BROKEN'}  {self.value:>10g}  {self.what}"
