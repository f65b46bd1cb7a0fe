"""Somebody who sees tags on the wire does not silence their owner."""

from integration.attacks import stolen_server_key, stolen_tag
from integration.lab import Lab, wait_until
from integration.site import Site
from integration.wire import Injector, Pen, datagram, now_us, tags_in_kernel
from keys import identity
from spa_protocol.keytext import format_key
from spa_protocol.layout import DATAGRAM_SIZE, epoch_of


def test_a_stolen_tag_does_not_silence_its_owner(lab: Lab) -> None:
    figures = list(stolen_tag.run(lab))
    assert len(figures) == 3
    assert [str(figure) for figure in figures if not figure.holds] == []


def test_who_floods_many_tags_takes_nothing_from_other_keys(lab: Lab) -> None:
    answered, _ = stolen_server_key.run(lab)
    assert answered.value >= 0.9 * stolen_server_key.KNOCKS, str(answered)


def test_the_flood_is_told_and_a_revoked_key_loses_its_spare_tags(lab: Lab) -> None:
    server, client, thief = lab.host("server"), lab.host("client"), lab.host("thief")
    site = Site(lab, server)
    pen = Pen.enrolled(site, "alice", "ops")
    site.apply_gate()
    site.start()
    epoch = epoch_of(now_us())
    pair = pen.key.pair_with(pen.server)
    assert pair.tag_at(epoch, 1) not in tags_in_kernel(server)
    junk = pen.tag(epoch).ljust(DATAGRAM_SIZE, b".")
    Injector(thief, server).send(*[datagram(junk, client.v4, server.v4)] * 15)
    wait_until(lambda: pair.tag_at(epoch, 63) in tags_in_kernel(server))
    (told,) = site.events("tag.flooded")
    assert (told["identity"], told["key_id"]) == ("alice", pen.key_id)
    spare = {
        pair.tag_at(near, number) for near in (epoch - 2, epoch, epoch + 1) for number in (1, 9)
    }
    assert spare <= tags_in_kernel(server).keys()
    site.keys("revoke", "alice", "--yes")
    wait_until(lambda: not tags_in_kernel(server))


def test_a_full_host_says_so_and_enrols_nobody_more(lab: Lab) -> None:
    server = lab.host("server")
    site = Site(lab, server, settings="max_keys = 100\n")
    keys = [format_key(identity.generate(f"user{n}").public) for n in range(100)]
    listed = site.lab.new_file("keys")
    listed.write_text("".join(f"{line}\n" for line in keys[:79]))
    site.keys("enroll", "crowd", "--from", str(listed), "--role", "ops")
    site.apply_gate()
    site.start()
    assert site.status()["keys_room"] == "enough"
    assert "registry-nearly-full" not in site.server("check", check=False).stdout
    site.enrol_key("one", keys[79])
    wait_until(lambda: site.status()["keys_room"].startswith("nearly full: 20 more"))
    assert "registry-nearly-full" in site.server("check", check=False).stdout
    listed.write_text("".join(f"{line}\n" for line in [*keys[80:], keys[0]]))
    site.keys("enroll", "crowd", "--from", str(listed))
    assert site.status()["keys_heard"] == site.status()["keys_at_most"] == 100
    more = format_key(identity.generate("more").public)
    refused = site.keys("enroll", "more", "--key", more, check=False)
    assert refused.returncode == 1
    assert "this host hears 100 at most; revoke some, or set a larger `max_keys`" in refused.stderr
    site.enrol_key("one", keys[79], expires="90d")
    assert len(tags_in_kernel(server)) == 600
