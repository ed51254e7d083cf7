"""How many pictures run at once, and what each may count on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from diffplugin.errors import RequestError
from diffplugin.runtime.planning import concurrency
from diffplugin.runtime.planning.concurrency import memory_share, restorations_at_once
from diffplugin.runtime.planning.memory import Footprint
from diffplugin.runtime.restorer import Restorer

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel

MEMORY = Footprint(weights=1000, per_latent_pixel=10)


@pytest.mark.parametrize(
    ("available", "cores", "expected"),
    [
        (None, 4, 4),  # unknown: as many as there are cores
        (10_000, 4, 4),
        (1000 + 3 * 100, 4, 3),  # three pieces of 10 latent pixels beside the weights
        (1000 + 99, 4, 1),
        (0, 4, 1),  # too little for one: the plan warns, it runs all the same
    ],
)
def test_as_many_as_fit(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, available: int | None, cores: int, expected: int
) -> None:
    monkeypatch.setattr(concurrency, "available_memory", lambda: available)
    assert restorations_at_once(None, model, cores=cores, memory=MEMORY, piece=10) == expected
    assert restorations_at_once(2, model, cores=cores, memory=MEMORY, piece=10) == 2, "as asked"


def test_an_engine_that_runs_one_at_a_time(model: FakeModel) -> None:
    model.concurrent = False
    assert restorations_at_once(None, model, cores=8, memory=MEMORY, piece=10) == 1
    assert restorations_at_once(1, model, cores=8, memory=MEMORY, piece=10) == 1
    with pytest.raises(RequestError, match="concurrency is 2, but engine fake restores one picture at a time"):
        restorations_at_once(2, model, cores=8, memory=MEMORY, piece=10)
    with pytest.raises(RequestError, match="concurrency is 0"):
        restorations_at_once(0, model, cores=8, memory=MEMORY, piece=10)


def test_shares_never_exceed_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "available_memory", lambda: 1600)
    each = memory_share(MEMORY, 3)
    assert each == 1200 and MEMORY.weights + 3 * (each - MEMORY.weights) == 1600
    monkeypatch.setattr(concurrency, "available_memory", lambda: 500)
    assert memory_share(MEMORY, 2) == 1000, "weights alone: the smallest pieces"
    monkeypatch.setattr(concurrency, "available_memory", lambda: None)
    assert memory_share(MEMORY, 2) is None


def test_plans_and_threads_of_one_job(fake_bundle: Bundle, model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int | None] = []
    load = model.load

    def seen(*words: object, **options: object) -> object:
        threads.append(options["threads"])  # type: ignore[arg-type]
        return load(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "load", seen)
    picture = np.full((64, 64, 3), 120, np.uint8)
    with Restorer(fake_bundle, model, "fp32", threads=5, concurrency=2) as restorer:
        whole = restorer.restore(picture, plugins=["derain"], steps=1)
        assert restorer.concurrency == 2 and set(threads) == {2}
        available = whole.plan.available
        assert available is not None
    with Restorer(fake_bundle, model, "fp32", threads=5) as restorer:
        alone = restorer.restore(picture, plugins=["derain"], steps=1).plan.available
    assert alone is not None and available < 0.75 * alone, f"{available} of {alone}"


def test_pictures_meet_in_the_middle_of_their_runs(fake_bundle: Bundle, model: FakeModel) -> None:
    """Two restorations are inside the UNet at once: nothing above the engines serialises them."""
    meeting = threading.Barrier(2, timeout=20)
    unet = model._function("unet")

    def meet(inputs: object) -> object:
        meeting.wait()
        return unet(inputs)  # type: ignore[arg-type]

    model.swap("unet", meet)  # type: ignore[arg-type]
    pictures = [np.full((64, 64, 3), value, np.uint8) for value in (60, 180)]
    made: dict[int, int] = {}
    with Restorer(fake_bundle, model, "fp32", threads=2, concurrency=2) as restorer:

        def one(i: int) -> None:
            made[i] = int(restorer.restore(pictures[i], plugins=["derain"], steps=2).array.mean())

        callers = [threading.Thread(target=one, args=(i,)) for i in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert sorted(made) == [0, 1] and made[0] < made[1]
