"""Who is to have the roles of a least policy, and the commands that see to it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from spa_server.policy.suggest.least import LeastRole


def assignments(
    roles: Iterable[LeastRole], identities: Mapping[str, frozenset[str]]
) -> dict[str, frozenset[str]]:
    """Who is to have which of the least policy's roles."""
    wanted: dict[str, set[str]] = {name: set() for name in identities}
    for role in roles:
        for person in role.people:
            wanted.setdefault(person, set()).add(role.name)
    return {name: frozenset(of_name) for name, of_name in wanted.items()}


def commands(roles: Sequence[LeastRole], identities: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """What gives the people of a registry those roles, and takes the ones that they do not need."""
    names = frozenset(role.name for role in roles)
    for person, wanted in sorted(assignments(roles, identities).items()):
        has = identities.get(person)
        if has is None:
            continue
        for role in sorted(wanted - has):
            yield f"spa-keys grant {person} {role}"
        for role in sorted((has & names) - wanted):
            yield f"spa-keys ungrant {person} {role}"
