"""The gatehouse: which gate this host should have, and whether it is to have one at all.

    gate.wanted     beside the database: the operator has put the gate in force, and it stays so
    gate.pending    in the runtime directory: a gate on trial, taken back unless it is confirmed

While either is there the daemon puts the gate back when somebody takes it away. `gate remove`
deletes both before the table, so that no message between the programs is needed.
"""

from ipaddress import ip_network

from spa_server.config import Config
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import AlwaysOpen, GatePlan
from spa_server.firewall.routes import outer_interfaces
from spa_server.policy.model import AlwaysOpenRule, Policy

_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def plan_gate(config: Config, policy: Policy) -> GatePlan:
    """The gate that the configuration and the policy ask for, on this host as it is routed now."""
    outer = config.outer if config.outer is not None else outer_interfaces()
    return GatePlan(
        knock_port=config.knock_port,
        always_open=tuple(opening for rule in policy.always_open for opening in _openings(rule)),
        cut=policy.cut,
        outer=outer,
    )


def _openings(rule: AlwaysOpenRule) -> list[AlwaysOpen]:
    networks = rule.sources.networks or _ANYWHERE
    return [AlwaysOpen(network, access) for network in networks for access in rule.accesses]


class Gatehouse:
    """The gate and the two marks about it.

    While `held` is set the gate is as nft once listed it, and not as the policy would have it: a
    daemon that began during a trial knows no policy to go back to.
    """

    def __init__(self, config: Config, gate: Gate) -> None:
        self.config = config
        self.held: str | None = None
        self._gate = gate
        self._plan: GatePlan | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the gate is to be in force, for good or on trial."""
        return self.config.gate_wanted.exists() or self.config.gate_pending.exists()

    @property
    def is_on_trial(self) -> bool:
        """Whether the gate in force waits to be confirmed."""
        return self.config.gate_pending.exists()

    def apply(self, policy: Policy) -> None:
        """Loads the gate, in place where one is loaded. Raises FirewallError."""
        if self.held is not None:
            self._gate.restore(self.held)
            return
        plan = plan_gate(self.config, policy)
        self._gate.apply(plan)
        self._plan = plan

    def is_out_of_date(self, policy: Policy) -> bool:
        """Whether the plan would be another now than when it was applied."""
        return self.held is None and plan_gate(self.config, policy) != self._plan

    def want(self) -> None:
        """The gate is in force for good."""
        self.config.gate_wanted.parent.mkdir(parents=True, exist_ok=True)
        self.config.gate_wanted.touch()
        self.config.gate_pending.unlink(missing_ok=True)

    def remove(self) -> None:
        """Takes the gate away, and the will to have it. Raises FirewallError."""
        self.config.gate_wanted.unlink(missing_ok=True)
        self.config.gate_pending.unlink(missing_ok=True)
        self._gate.remove()
