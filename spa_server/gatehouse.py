"""The gatehouse: which gate this host should have, and whether it is to have one at all.

While one of the marks of spa_server/marks.py is there, the daemon puts the gate back when somebody
takes it away. `gate remove` deletes both before the table, so that no message between the programs
is needed.
"""

from ipaddress import ip_network

from keys.tomlfile import FileProblem
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_server import marks
from spa_server.admission import room_for
from spa_server.answer import why_not_raw
from spa_server.config import Config, Mode, reread
from spa_server.firewall import accounting
from spa_server.firewall.gate import observed_in
from spa_server.firewall.kernel import Gate
from spa_server.firewall.plan import AlwaysOpen, GatePlan, Observed
from spa_server.firewall.routes import outer_interfaces
from spa_server.hole import Hole
from spa_server.policy.model import AlwaysOpenRule, Policy

_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def plan_gate(config: Config, policy: Policy) -> GatePlan:
    """The gate that the configuration and the policy ask for, on this host as it is routed now.

    Raises FileProblem, as `plan_observed` does.
    """
    outer = config.outer if config.outer is not None else outer_interfaces()
    return GatePlan(
        knock_port=config.knock_port,
        carriers=config.carriers,
        always_open=tuple(opening for rule in policy.always_open for opening in _openings(rule)),
        cut=policy.cut,
        outer=outer,
        observed=plan_observed(config, policy),
        tags=room_for(config.max_keys),
    )


def plan_observed(config: Config, policy: Policy) -> Observed:
    """Which ports are observed. Raises FileProblem for a service that the policy has not got."""
    unknown = next((name for name in config.observe if name not in policy.services), None)
    if unknown is not None:
        known = ", ".join(sorted(policy.services)) or "none"
        problem = f"no service {unknown!r} in {config.policy}; known: {known}"
        raise FileProblem(config.path, "observe", problem)
    return Observed(
        everything=config.mode is Mode.OBSERVE,
        accesses=tuple(access for name in config.observe for access in policy.services[name]),
    )


def _openings(rule: AlwaysOpenRule) -> list[AlwaysOpen]:
    networks = rule.sources.networks or _ANYWHERE
    return [AlwaysOpen(network, access) for network in networks for access in rule.accesses]


def _must_stay_open(before: Config, after: Config) -> None:
    """Raises FileProblem where ports that were observed would be closed by a mere reload."""
    if after.mode is Mode.OBSERVE:
        return
    closes = before.mode is Mode.OBSERVE, not set(before.observe) <= set(after.observe)
    if any(closes):
        problem = "what is only observed now would be closed; try it: spa-server gate apply"
        key = "mode" if closes[0] else "observe"
        raise FileProblem(after.path, key, f"{problem} --confirm-within 60s")


class Gatehouse:
    """The gate and the two marks about it.

    In `config`, `mode` and `observe` are those that the gate is applied with; what server.toml says
    by now is not known before it is reread.

    While `held` is set the gate is as nft once listed it, and not as the policy would have it: a
    daemon that began during a trial knows no policy to go back to.
    """

    def __init__(self, config: Config, gate: Gate) -> None:
        self.config = config
        self.held: str | None = None
        self.listed: str | None = None  # how nft listed the gate when it had just been applied
        self.not_counted: tuple[str, ...] = ()  # what conntrack could not be made to do
        self._gate = gate
        self._plan: GatePlan | None = None
        self._before_trial: Config | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the gate is to be in force, for good or on trial."""
        return marks.is_wanted(self.config) or marks.is_on_trial(self.config)

    @property
    def is_on_trial(self) -> bool:
        """Whether the gate in force waits to be confirmed."""
        return marks.is_on_trial(self.config)

    @property
    def observed(self) -> Observed:
        """Which ports the gate in force observes."""
        if self.held is not None:
            return observed_in(self.held)
        if self._plan is None:
            return Observed(everything=self.config.mode is Mode.OBSERVE)
        return self._plan.observed

    def cuts(self, hole: Hole) -> bool:
        """Whether a session may be cut when its hole ends: where the gate observes, it may not."""
        return hole.access not in self.observed

    def needs_no_hole(self, source: Address, access: Access) -> bool:
        """Whether the gate in force lets a source in without one; also where nobody can tell."""
        if self._plan is None or self.held is not None:
            return True
        openings = self._plan.always_open
        return access in self._plan.observed or any(
            source in opening.network and access in opening.access for opening in openings
        )

    def reread(self, policy: Policy, *, may_close: bool = True) -> None:
        """Takes `mode`, `observe` and `carriers` from server.toml, to be applied with a policy.

        Without `may_close`, what is observed stays so: closing a host takes a trial. Raises
        FileProblem, and keeps what it had.
        """
        config = reread(self.config)
        plan_observed(config, policy)
        if not may_close and self.is_wanted:
            _must_stay_open(self.config, config)
        if config.carriers != self.config.carriers and (why := why_not_raw(config.carriers)):
            raise FileProblem(config.path, "carriers", why)
        if self.is_on_trial and self._before_trial is None:
            self._before_trial = self.config
        self.config = config

    def confirm(self) -> None:
        """The trial is over: what was reread stays."""
        self._before_trial = None

    def take_back(self) -> None:
        """The trial is over: `mode` and `observe` are what they were before it, to be applied."""
        self.config, self._before_trial = self._before_trial or self.config, None

    def apply(self, policy: Policy) -> None:
        """Loads the gate, in place where one is loaded. Raises FirewallError, or FileProblem."""
        if self.held is not None:
            self._gate.restore(self.held)
        else:
            plan = plan_gate(self.config, policy)
            self._gate.apply(plan)
            self._plan = plan
        self.listed = self._gate.ruleset()
        self.not_counted = accounting.switch_on()

    def is_out_of_date(self, policy: Policy) -> bool:
        """Whether the plan would be another now than when it was applied."""
        return self.held is None and plan_gate(self.config, policy) != self._plan

    def want(self) -> None:
        """The gate is in force for good."""
        marks.want(self.config)

    def remove(self, *, by_force: bool = False) -> None:
        """Takes the gate away, and the will to have it; `by_force` from a daemon that hangs too.

        Raises FirewallError and OSError.
        """
        marks.forget(self.config)
        self._gate.remove(by_force=by_force)
