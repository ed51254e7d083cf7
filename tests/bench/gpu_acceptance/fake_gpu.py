"""The recording fake as an engine that ``get_builder`` knows."""

from __future__ import annotations

from tests.engines.fake_driver import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRtBuilder

NAME = FakeTensorRtBuilder.name
drivers: list[FakeDriver] = []


def builder() -> FakeTensorRtBuilder:
    """Every builder of one test shares its GPU."""
    return FakeTensorRtBuilder(drivers[-1])
