"""The least cost of an episode whose prices are known beforehand, by linear programming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, diags_array, eye_array

from hpo_torchrl.problems.storage.optimum import Store

_TANGENTS = 41  # of the squared power, all of them below it


class Site(NamedTuple):
    """What all batteries share in an episode of T steps; powers in MW, of all together.

    Attributes:
        load: power used on site, ``(T,)``.
        hours: length of a step.
        impact: cost of the squared total power.
        limit: most import and export of the connection; infinite where there is none.
        excess_cost: cost per MWh beyond.
        demand_charge: fee per MW of the highest import.
    """

    load: np.ndarray
    hours: float
    impact: float
    limit: tuple[float, float]
    excess_cost: float
    demand_charge: float

    @classmethod
    def of(cls, env: Any) -> Site:
        """Return the site of an environment with a horizon."""
        load = env.load_by_step.double().cpu().numpy()
        return cls(
            load=np.resize(load, env.horizon),
            hours=env.step_hours,
            impact=env.price_impact / env.num_batteries,
            limit=(np.inf, np.inf) if env.connection is None else env.connection,
            excess_cost=env.excess_cost,
            demand_charge=env.demand_charge,
        )


def hindsight_cost(
    stores: Sequence[Store],
    site: Site,
    price: np.ndarray,
    contents: Sequence[float],
    *,
    copies: int = 1,
    whole: bool = False,
) -> float:
    """Return the least cost of an episode, or a lower bound on it.

    With ``whole`` each battery is idle, charges or discharges, and the cost is the optimum if the
    price has no impact. Else the modes may be shares of a step, and the cost of the impact is taken
    along tangents: a lower bound.

    Args:
        stores: the batteries.
        site: what they share.
        price: of each step, ``(T,)``.
        contents: what is in each battery at first, MWh.
        copies: how many batteries each stands for.
        whole: whether modes are whole.

    Returns:
        The cost of the episode; what is left in the batteries is worth nothing.

    Raises:
        RuntimeError: the solver gave up.

    Examples:
        >>> import numpy as np
        >>> from hpo_torchrl.problems.storage.hindsight import Site, hindsight_cost
        >>> from hpo_torchrl.problems.storage.optimum import Store
        >>> store = Store(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 2.0)
        >>> site = Site(np.zeros(2), 1.0, 0.0, (np.inf, np.inf), 0.0, 0.0)
        >>> round(hindsight_cost([store], site, np.array([10.0, 30.0]), [0.0], whole=True), 6)
        -16.0
    """
    T, hours = len(price), site.hours
    program, eye = _Program(), eye_array(T)
    batteries = range(len(stores))
    for i, (store, first) in enumerate(zip(stores, contents, strict=True)):
        _add_battery(program, i, store, first, price, hours, copies, whole)
    taken = {f"taken{i}": eye for i in batteries}
    given = {f"given{i}": eye for i in batteries}
    less = dict.fromkeys((*taken, *given), -eye)
    program.columns |= {
        "import": (np.full(T, hours * site.excess_cost), np.full(T, np.inf), 0),
        "export": (np.full(T, hours * site.excess_cost), np.full(T, np.inf), 0),
        "peak": (np.array([site.demand_charge]), np.array([np.inf]), 0),
    }
    total = taken | {name: less[name] for name in given}
    back = given | {name: less[name] for name in taken}
    program.rows += [
        ({**total, "import": -eye}, -np.inf, site.limit[0] - site.load),
        ({**back, "export": -eye}, -np.inf, site.limit[1] + site.load),
        ({**total, "peak": -np.ones((T, 1))}, -np.inf, -site.load),
    ]
    if site.impact:
        # The square is above each of its tangents.
        program.columns["impact"] = (np.full(T, hours * site.impact), np.full(T, np.inf), 0)
        most = copies * sum(max(store.charge_rating, store.discharge_rating) for store in stores)
        for p in np.linspace(-most, most, _TANGENTS):
            tangent = {name: 2 * p * sign for name, sign in total.items()}
            program.rows.append(({**tangent, "impact": -eye}, -np.inf, np.full(T, p**2)))
    return program.solved()


def _add_battery(
    program: _Program,
    i: int,
    store: Store,
    first: float,
    price: np.ndarray,
    hours: float,
    copies: int,
    whole: bool,
) -> None:
    """Add power taken and given, whether that runs, and the content after each step."""
    T, ones, eye = len(price), np.ones(len(price)), eye_array(len(price))
    taken, given, charging, discharging, content = (
        f"{name}{i}" for name in ("taken", "given", "charging", "discharging", "content")
    )
    charge, discharge = copies * store.charge_rating, copies * store.discharge_rating
    wear, runs = hours * store.wear_cost, hours * copies * store.running_cost
    program.columns |= {
        taken: (hours * price + wear, charge * ones, 0),
        given: (wear - hours * price, discharge * ones, 0),
        charging: (runs * ones, ones, whole),
        discharging: (runs * ones, ones, whole),
        content: (0 * ones, copies * store.capacity * ones, 0),
    }
    # A fleet may burn energy, and need not lose as much by itself as its worst battery.
    kept = 1.0 if store.fleet else (1 - store.self_discharge) ** hours
    start = np.concatenate([[kept * copies * first], np.zeros(T - 1)])
    change = {
        content: diags_array([ones, -kept * ones[1:]], offsets=[0, -1], shape=(T, T)),
        taken: -hours * store.charge_efficiency * eye,
        given: hours / store.discharge_efficiency * eye,
    }
    program.rows += [
        (change, -np.inf if store.fleet else start, start),
        ({taken: eye, charging: -charge * eye}, -np.inf, 0 * ones),
        ({given: eye, discharging: -discharge * eye}, -np.inf, 0 * ones),
        ({charging: eye, discharging: eye}, -np.inf, ones),
    ]


class _Program:
    """A mixed-integer linear program, of named blocks of columns and of rows.

    Attributes:
        columns: cost, upper end (the lower one is 0) and whether it is whole, by name.
        rows: matrices by the column's name, lower end, upper end.
    """

    def __init__(self) -> None:
        self.columns: dict[str, tuple[np.ndarray, np.ndarray, int]] = {}
        self.rows: list[tuple[dict[str, Any], Any, np.ndarray]] = []

    def solved(self) -> float:
        """Return the least cost."""
        costs, tops, whole = zip(*self.columns.values(), strict=True)
        matrix = block_array([[row.get(name) for name in self.columns] for row, *_ in self.rows])
        high = np.concatenate([row[2] for row in self.rows])
        low = np.concatenate([np.broadcast_to(low, top.shape) for _, low, top in self.rows])
        found = milp(
            np.concatenate(costs),
            constraints=LinearConstraint(matrix.tocsr(), low, high),
            bounds=Bounds(0, np.concatenate(tops)),
            integrality=np.repeat(whole, [len(cost) for cost in costs]),
            options={"mip_rel_gap": 1e-9},
        )
        if found.x is None:
            raise RuntimeError(f"The solver found no least cost of the episode: {found.message}")
        return float(found.fun)
