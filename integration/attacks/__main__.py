"""Runs every attack, or those that are named, and prints what came of each."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from integration import attacks
from integration.lab import Lab, missing


def names() -> list[str]:
    """The attacks there are."""
    return sorted(m.name for m in iter_modules(attacks.__path__) if not m.name.startswith("_"))


def main(wanted: Sequence[str]) -> int:
    """0 where every defence held, 1 where one did not, 2 for a name that is no attack's."""
    if reason := missing():
        print(f"attacks: {reason}", file=sys.stderr)
        return 4
    if unknown := set(wanted) - set(names()):
        print(f"attacks: no attack is called {min(unknown)}; there are: {', '.join(names())}")
        return 2
    held = True
    for name in wanted or names():
        module = import_module(f"{attacks.__name__}.{name}")
        print(f"{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        with Lab() as lab:
            for figure in module.run(lab):
                held = held and figure.holds
                print(f"    {figure}", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
