"""Measures this system beside fwknopd: python -m benchmarks, or make bench."""

import fcntl
import importlib
import json
import shlex
import shutil
import signal
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import click

from benchmarks import machine, report
from benchmarks.bench import Bench, Goal
from benchmarks.crowd import Writers
from benchmarks.process import load_over
from integration.lab import missing

GOALS: Final = ("opening", "users", "flooded", "sustained", "holes", "rest", "gate")
_HERE: Final = Path(__file__).parent
_CACHE: Final = _HERE.parent / "build" / "benchmarks"
_PROGRAMS: Final = ("fwknopd", "fwknop", "gcc", "iptables", "nft", "taskset")
_FAILED: Final = 1
_TROUBLE: Final = 4
_INTERRUPTED: Final = 130
_LOCK: Final = Path("/run/lock/spaknock-benchmarks")
_LOOK_S: Final = 1.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Small numbers, under three minutes; writes no file.")
@click.option("--only", multiple=True, type=click.Choice(GOALS), help="This goal; may be repeated.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Every run of everything."
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where RESULTS.md and the plots go. [default: benchmarks/, where all goals are measured]",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=_CACHE,
    help="Where compiled programs and enrolled crowds are kept. [default: build/benchmarks]",
)
def main(
    quick: bool, only: tuple[str, ...], json_file: Path | None, results: Path | None, cache: Path
) -> None:
    """Measures spaknock and fwknopd side by side, as root, in network namespaces of its own.

    \b
    Examples:
      python -m benchmarks                  everything; writes RESULTS.md and the plots
      python -m benchmarks --quick
      python -m benchmarks --only sustained --json /tmp/sustained.json
    """
    if reason := _why_not():
        click.echo(f"benchmarks: {reason}", err=True)
        raise SystemExit(_TROUBLE)
    try:
        alone = _alone()
    except BlockingIOError:
        click.echo("benchmarks: another run is at work; wait for its end", err=True)
        raise SystemExit(_TROUBLE) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        goals = _measured(only or GOALS, cache, quick=quick)
    except KeyboardInterrupt:
        click.echo("benchmarks: stopped; the hosts are gone", err=True)
        raise SystemExit(_INTERRUPTED) from None
    finally:
        alone.close()
    complete = len(goals) == len(only or GOALS)
    where = machine.described()
    taken_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    click.echo(report.summary(goals))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(goals, where, command, taken_at), indent=1))
    results = results or (_HERE if complete and not quick and not only else None)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        (results / "RESULTS.md").write_text(report.markdown(goals, where, command, taken_at))
        for name, drawing in report.drawings(goals).items():
            (results / f"{name}.svg").write_text(drawing)
    raise SystemExit(0 if complete else _FAILED)


def _alone() -> IO[str]:
    """A lock on this machine while it is open. Raises BlockingIOError where it is taken."""
    lock = _LOCK.open("w", encoding="ascii")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _why_not() -> str:
    if reason := missing():
        return f"{reason}; run it as root"
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"{', '.join(absent)} missing; make bench installs what it needs" if absent else ""


def _measured(names: tuple[str, ...], cache: Path, *, quick: bool) -> list[Goal]:
    goals = []
    with Writers() as writers:
        bench = Bench(cache, quick, writers)
        for name in (name for name in GOALS if name in names):
            load = load_over(_LOOK_S)
            try:
                goal: Goal = importlib.import_module(f"benchmarks.{name}").measure(bench)
            except Exception:  # an hour's other figures are not to be lost with this one's
                traceback.print_exc()
                continue
            goal.load = load
            goals.append(goal)
    return goals


if __name__ == "__main__":
    main()
