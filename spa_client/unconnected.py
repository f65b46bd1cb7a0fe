"""Why no connection came about behind a knock, in words."""

from collections.abc import Iterator

from keys.trouble import ExitCode
from spa_client.connect import Race
from spa_client.knocking import Knocking


def reasons(knocking: Knocking, race: Race) -> Iterator[str]:
    """Why no connection came about, one line for each reason."""
    if not race.failures:
        yield from (line.text for line in knocking.story(race.results).lines())
        return
    access = knocking.composer.wish.accesses[0]
    for failure in race.failures:
        at = f"{knocking.host.name} ({failure.target})"
        hint = f"see 'spa-client doctor {knocking.host.name} {access}'"
        if not failure.silent:
            hint = "is the service running there?"
        yield f"{at}: {access} is open, but connecting failed: {failure.error}; {hint}"


def exit_code(knocking: Knocking, race: Race) -> ExitCode:
    """How to end then."""
    return ExitCode.NO_ANSWER if race.failures else knocking.story(race.results).exit_code
