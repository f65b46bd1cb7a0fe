"""The fair queue: who has much to ask waits behind who has little."""

from ipaddress import IPv4Address

from spa_server.capture.datagram import Datagram
from spa_server.fairqueue import AT_ONCE, OF_ONE, FairQueue

HOST = IPv4Address("10.0.0.1")


def of(party: str, count: int = 1) -> list[Datagram]:
    return [
        Datagram(party.encode() + n.to_bytes(4), HOST, 1, HOST, 62201, "udp", 0)
        for n in range(count)
    ]


def queue() -> FairQueue:
    return FairQueue(lambda datagram: datagram.payload[:-4].decode())


def test_everybody_else_is_in_the_next_batch_whatever_one_has_sent() -> None:
    waiting = queue()
    waiting.put(of("mallory", OF_ONE))
    waiting.put(of("alice") + of("bob", 2))
    assert waiting.take() == [of("mallory")[0], of("alice")[0], of("bob")[0]]
    assert waiting.take() == [of("mallory", 2)[1], of("bob", 2)[1]]


def test_one_party_alone_keeps_its_order_and_loses_nothing() -> None:
    waiting = queue()
    taken: list[Datagram] = []
    waiting.put(of("alice", 100))
    while waiting:
        taken += waiting.take()
    assert taken == of("alice", 100)


def test_what_one_party_has_too_much_of_is_dropped_and_counted() -> None:
    waiting = queue()
    assert waiting.put(of("mallory", OF_ONE + 7)) == 7
    assert waiting.put(of("alice")) == 0


def test_a_batch_is_bounded_and_who_was_left_out_comes_first_in_the_next() -> None:
    waiting = queue()
    names = [str(n) for n in range(AT_ONCE + 20)]
    for name in names:
        waiting.put(of(name, 2))
    first, second = waiting.take(), waiting.take()
    assert len(first) == AT_ONCE
    assert [d.payload[:-4].decode() for d in second[:20]] == names[AT_ONCE:]


def test_junk_under_a_stolen_tag_delays_nothing_under_a_spare_one() -> None:
    waiting = FairQueue(lambda _: "alice")
    waiting.put(of("stolen--", OF_ONE))
    waiting.put(of("spare---"))
    assert waiting.take() + waiting.take() == of("stolen--") + of("spare---")


def test_tags_of_nobody_take_bounded_room() -> None:
    waiting = FairQueue(lambda _: "")
    assert waiting.put(d for n in range(OF_ONE + 3) for d in of(f"{n:08}")) == 3
