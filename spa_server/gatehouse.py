"""The gatehouse: which gate this host should have, and whether it is to have one at all.

While one of the marks of spa_server/marks.py is there, the daemon puts the gate back when somebody
takes it away. `gate remove` deletes both before the table, so that no message between the programs
is needed.

What the gate observed when the operator last kept it stays observed until a gate is applied, on
trial or not, whatever server.toml says by then: a restart and a boot close nothing that nobody has
tried to close. That it is so is told (`held_back`).
"""

from dataclasses import replace
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


def plan_as_kept(config: Config, policy: Policy) -> GatePlan:
    """The gate that a daemon makes of them when it starts. Raises FileProblem."""
    return _with(marks.kept_open(config), plan_gate(config, policy))


def _with(kept: Observed, plan: GatePlan) -> GatePlan:
    return replace(plan, observed=plan.observed | kept) if kept.beyond(plan.observed) else plan


def would_close(config: Config, kept: Observed) -> FileProblem:
    """What is wrong with a server.toml that no longer observes what is kept open."""
    problem = f"{kept} is observed until a gate is applied that closes it; try it: spa-server gate"
    key = "mode" if kept.everything else "observe"
    return FileProblem(config.path, key, f"{problem} apply --confirm-within 60s")


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

    def __init__(self, config: Config, gate: Gate, *, may_close: bool = False) -> None:
        """With `may_close` nothing is kept open: somebody applies a gate."""
        self.config = config
        self.held_back: FileProblem | None = None
        self._kept = Observed() if may_close else marks.kept_open(config)
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
        if may_close:
            self._kept = Observed()
        if self.is_on_trial and self._before_trial is None:
            self._before_trial = self.config
        self.config = config

    def confirm(self) -> None:
        """The trial is over: what was reread stays."""
        self._before_trial = None

    def take_back(self) -> None:
        """The trial is over: `mode` and `observe` are what they were before it, to be applied."""
        self.config, self._before_trial = self._before_trial or self.config, None
        self._kept = marks.confirmed(self.config) or Observed()

    def apply(self, policy: Policy) -> None:
        """Loads the gate, in place where one is loaded. Raises FirewallError, or FileProblem."""
        if self.held is not None:
            self._gate.restore(self.held)
        else:
            plan = self._plan_now(policy)
            self._gate.apply(plan)
            self._plan = plan
        self.listed = self._gate.ruleset()
        self.not_counted = accounting.switch_on()

    def is_out_of_date(self, policy: Policy) -> bool:
        """Whether the plan would be another now than when it was applied."""
        return self.held is None and self._plan_now(policy) != self._plan

    def _plan_now(self, policy: Policy) -> GatePlan:
        asked = plan_gate(self.config, policy)
        kept = self._kept.beyond(asked.observed)
        self.held_back = would_close(self.config, kept) if kept else None
        return _with(self._kept, asked)

    def want(self, *, as_before: bool = False) -> None:
        """The gate is in force for good, and so is what it observes, unless it is `as_before`."""
        is_known = not as_before and self._gate.is_loaded()
        marks.want(self.config, observed_in(self._gate.ruleset()) if is_known else None)

    def remove(self, *, by_force: bool = False) -> None:
        """Takes the gate away, and the will to have it; `by_force` from a daemon that hangs too.

        Raises FirewallError and OSError.
        """
        marks.forget(self.config)
        self._gate.remove(by_force=by_force)
