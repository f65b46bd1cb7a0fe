"""What `inspect` knows of a capture beyond what the daemon admits."""

from pathlib import Path

import pytest

from keys import identity
from keys.registry import opened
from keys.serverkey import generate
from spa_protocol.knock import message_to_sign, seal_request
from spa_protocol.layout import TAGS
from spa_server.addressing import Addressing
from spa_server.admission import Admission
from spa_server.directory import Directory
from spa_server.inspection import inspect
from spa_server.ruling import Terms
from tests.test_policy import policy
from tests.test_reception import OWN
from tests.world import NOW_US, datagram, knock_at


@pytest.mark.parametrize("number", [0, 1, TAGS - 1])
def test_a_knock_under_a_spare_tag_is_known(tmp_path: Path, number: int) -> None:
    server, alice = generate(), identity.generate()
    admission = Admission()
    with opened(tmp_path / "spa.db", create=True) as registry:
        registry.enroll("alice", alice.public, roles=["ops"], now_us=NOW_US, actor="root")
        directory = Directory(registry, server, admission)
        directory.load(NOW_US)
        request, nonce = knock_at(), bytes(range(24))
        message = message_to_sign(
            request, server=server.public, agreement=alice.public.agreement, nonce=nonce
        )
        pair = alice.pair_with(server.public)
        payload = seal_request(
            request, alice.sign(message), pair=pair, nonce=nonce, tag_number=number
        )
        terms = Terms(policy(), (), Addressing(OWN.__contains__))
        (found,) = inspect([datagram(payload)], directory, admission, terms, 30)
    assert found.identity == "alice"
    assert found.verdict in {"accepted", "refused"}
