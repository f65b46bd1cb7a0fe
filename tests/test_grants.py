"""Grants and the holes that they keep open (spa_server/grants.py)."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from spa_protocol.access import Access
from spa_server.grants import Grant, GrantBook
from spa_server.hole import Hole
from spa_server.policy.model import Sessions

BASE = Grant(
    grant_id=1,
    key_id="key",
    identity="alice",
    rule="roles.ops.allow[0]",
    source=ip_address("10.0.0.9"),
    target=ip_address("10.0.0.1"),
    access=Access.parse("tcp/22"),
    once=False,
    sessions=Sessions.KEEP,
    opened_at_us=0,
    expires_at_us=0,
    ends_at_s=10.0,
)
HOLE = next(BASE.holes)


def grant(grant_id: int, ends_at_s: float, **fields: object) -> Grant:
    return replace(BASE, grant_id=grant_id, ends_at_s=ends_at_s, **fields)  # type: ignore[arg-type]


def test_a_grant_opens_a_hole_for_each_port() -> None:
    change = GrantBook().add([grant(1, 10, access=Access.parse("tcp/8000-8002"))])
    assert [hole.port for hole in change.open_until_s] == [8000, 8001, 8002]
    assert change.new == set(change.open_until_s)


def test_a_shorter_grant_changes_nothing_and_a_longer_one_does() -> None:
    book = GrantBook()
    book.add([grant(1, 10)])
    assert book.add([grant(2, 5)]).open_until_s == {}
    change = book.add([grant(3, 20)])
    assert (change.open_until_s, change.new) == ({HOLE: 20}, set())


def test_ending_one_grant_leaves_the_others() -> None:
    book = GrantBook()
    long, short = grant(1, 20), grant(2, 10, identity="bob")
    book.add([long, short])
    change = book.end([long])
    assert (change.open_until_s, change.close) == ({HOLE: 10}, ())
    assert book.holders(HOLE) == [short]
    change = book.end([short])
    assert (change.open_until_s, change.close) == ({}, (HOLE,))
    assert len(book) == 0


def test_ending_the_shorter_grant_touches_no_hole() -> None:
    book = GrantBook()
    long, short = grant(1, 20), grant(2, 10)
    book.add([long, short])
    change = book.end([short])
    assert (change.open_until_s, change.close) == ({}, ())


def test_once_is_a_hole_of_its_own() -> None:
    book = GrantBook()
    change = book.add([grant(1, 10), grant(2, 10, once=True)])
    assert list(change.open_until_s) == [HOLE, replace(HOLE, once=True)]


def test_grants_expire_in_their_turn() -> None:
    book = GrantBook()
    book.add([grant(1, 10), grant(2, 5), grant(3, 7)])
    assert book.next_end_s() == 5
    assert [one.grant_id for one in book.expire(7)] == [2, 3]
    assert book.next_end_s() == 10
    book.end(list(book))
    assert book.next_end_s() is None


def test_ending_what_is_not_there_is_nothing() -> None:
    assert GrantBook().end([BASE]).close == ()


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from("abc"), st.booleans()), max_size=30),
    st.lists(st.tuples(st.booleans(), st.integers(0, 70)), max_size=30),
)
def test_the_book_and_a_model_of_the_kernel_agree(
    opened: list[tuple[int, str, bool]], acts: list[tuple[bool, int]]
) -> None:
    """Whatever is opened, ended and expired: telling the kernel each change keeps it right."""
    book, kernel = GrantBook(), dict[Hole, float]()
    for number, (ends_at_s, identity, once) in enumerate(opened):
        one = grant(number, ends_at_s, identity=identity, once=once)
        kernel.update(book.add([one]).open_until_s)
    now_s = 0
    for is_end, value in acts:
        if is_end:
            change = book.end(book.where(lambda one, value=value: one.grant_id == value))  # type: ignore[misc]
            kernel.update(change.open_until_s)
            for hole in change.close:
                del kernel[hole]
        else:
            now_s = max(now_s, value)
            book.expire(now_s)
            kernel = {hole: end_s for hole, end_s in kernel.items() if end_s > now_s}
        assert kernel == book.holes()
