from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

from tests.support.kafka import kafka_brokers

__all__ = ["kafka_brokers"]

# Machines are shared and noisy: a slow example is not a failure
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")


FIRST = ("chaos", "kafka", "relay", "journeys", "e2e", "link")
"""Groups of tests in the order in which workers take them, by the first word of their names. The run of chaos takes most of the machine:
tests that wait for Kafka are the best company. Last come the many small ones, which leave no worker without work."""
OF_THEIR_OWN = frozenset({"test_edge_alone.py", "test_faults.py", "test_hostile_edge.py", "test_leaderboard.py", "test_operators.py"})
"""Modules of tests/e2e without the product that the others share."""


class AtOnce:
    """Tells of failures when they happen: of a run that is ended from outside nothing else is seen."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
            reporter.ensure_newline()
            reporter.write_line(f"FAILED {report.nodeid} ({report.when})")
            reporter.write_line(report.longreprtext)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(config))


def group_of(nodeid: str) -> str:
    """Tests that share a running product are one worker's, so that it is started once. The others go module by module."""
    folder, *_, module = nodeid.partition("::")[0].removeprefix("tests/").split("/")
    if folder == "e2e" and module not in OF_THEIR_OWN:
        return "relay"
    return folder if folder in ("chaos", "journeys") else f"{folder} {module}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid).partition(" ")[0], len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups by name, since marks of groups are lost between pytest 9.2 and pytest-xdist 3.8 (pytest-xdist issue 1386)."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

        def _reschedule(self, node: Any) -> None:
            if node in self.registered_collections:  # a worker that takes the place of another may not be there yet
                super()._reschedule(node)

        def remove_node(self, node: Any) -> str | None:
            """The test that ended its worker is not run again. Units of which nothing is left go, too: a worker that is given one never
            asks for another, and the run stands still (seen with pytest-xdist 3.8)."""
            work = self.assigned_work[node]
            crashed: str | None = next((test for unit in work.values() for test, done in unit.items() if not done), None)
            if crashed is not None:
                work[self._split_scope(crashed)][crashed] = True
            for scope in [scope for scope, unit in work.items() if all(unit.values())]:
                del work[scope]
            super().remove_node(node)
            return crashed

    config.option.loadscopereorder = False
    return Groups(config, log)
