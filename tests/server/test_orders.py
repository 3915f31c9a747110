"""Which tables are remembered: those that a gateway may serve, or be putting into force."""

from __future__ import annotations

import pytest

from controlplane.core.messages import GatewayReport
from controlplane.core.plan import Plan
from controlplane.core.routes import RouteTable
from controlplane.server.orders import Orders

EPOCH = 3


def orders(tables: int) -> Orders:
    """Those of a controller that has issued so many tables, from generation 1 on."""
    made = Orders(EPOCH, lambda key: None)
    for number in range(tables):
        made.issue(Plan(table=RouteTable(pools={f"pool-{number}": ()})))
    return made


def report(generation: int, refused: tuple[int, int] = (0, 0), epoch: int = EPOCH) -> GatewayReport:
    return GatewayReport(gateway="gw", incarnation="i", epoch=epoch, generation=generation, refused=refused)


@pytest.mark.parametrize(
    ("told", "pending"),
    [
        pytest.param(report(6), [], id="it serves the newest"),
        pytest.param(report(4), [5, 6], id="it may be taking up either"),
        pytest.param(report(2, (EPOCH, 5)), [5, 6], id="what was refused last is tried again, nothing before it"),
        pytest.param(report(2, (EPOCH - 1, 900)), [3, 4, 5, 6], id="an earlier controller's table was refused"),
        pytest.param(report(900, epoch=EPOCH - 1), [1, 2, 3, 4, 5, 6], id="it serves an earlier controller's table"),
    ],
)
def test_tables_that_a_gateway_may_be_putting_into_force(told: GatewayReport, pending: list[int]) -> None:
    made = orders(6)
    assert [each.generation for each in made.pending(told)] == pending
    made.keep_tables([told, report(6)])
    assert [each.generation for each in made.pending(told)] == pending, "what is forgotten is not among them"
    assert told.epoch != EPOCH or made.table_of(told.generation) is not None


def test_a_gateway_that_refuses_every_table_makes_nobody_remember_all_of_them() -> None:
    made = orders(1)
    kept = []
    for number in range(2, 200):
        made.issue(Plan(table=RouteTable(pools={f"more-{number}": ()})))
        made.keep_tables([report(number), report(1, (EPOCH, number - 1))])
        kept.append(sum(made.table_of(each) is not None for each in range(1, number + 1)))
    assert max(kept) == 3
    made.keep_tables([])
    assert made.table is not None and made.table.generation == 199
