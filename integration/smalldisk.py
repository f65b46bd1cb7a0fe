"""A guarded host whose files are on a small disk, and its socket elsewhere, as usual."""

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from integration.lab import Host, Lab
from integration.site import Person, Site


@dataclass
class SmallDisk:
    """Its site, two hosts beside it, and alice, who may everything."""

    site: Site
    client: Host
    other: Host
    alice: Person

    def fill(self) -> None:
        """Leaves room for nothing."""
        with (self.site.directory / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    def make_room(self) -> None:
        """As before."""
        (self.site.directory / "filler").unlink()

    def is_up_to_date(self) -> bool:
        """Whether nothing waits to be recorded."""
        return bool(self.site.status()["record"] == "written")

    @classmethod
    def new(cls, lab: Lab, settings: str = "", size: str = "1m") -> Self:
        """One with the gate in force; its daemon is not started. `settings` are of server.toml."""
        server, client, other = lab.host("server"), lab.host("client"), lab.host("other")
        disk, run = lab.new_file("disk"), lab.new_file("run")
        disk.mkdir()
        run.mkdir()
        mount = ("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "spa-test", disk)
        subprocess.run(mount, check=True)
        lab.at_end(lambda: subprocess.run(["umount", "--lazy", disk], check=True))
        site = Site(lab, server, directory=disk, settings=settings)
        elsewhere = site.config.read_text().replace("control.sock", f"{run}/control.sock")
        site.config.write_text(elsewhere)
        alice = site.enrol("alice", "ops")
        for port in (22, 80):
            server.serve(port)
        site.apply_gate()
        return cls(site, client, other, alice)
