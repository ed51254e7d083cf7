"""Pictures that stay on the device: how many, for whom, and what is left when something fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from diffplugin.bundle import Bundle
from diffplugin.errors import Cancelled, EngineError, NotFinite
from diffplugin.runtime.execution.captured_stage import CapturedStage, CaptureKey
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array
from tests.engines.fake_driver import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRt, FakeTensorRtBuilder
from tests.runtime.conftest import device_of, smooth_photo


def test_prepare_leaves_only_launches(on_device: Restorer, driver: FakeDriver) -> None:
    on_device.prepare((64, 48))
    before = len(driver.calls)
    for plugin in ("derain", "lowlight", "dehaze"):
        assert on_device.restore(smooth_photo(), plugins=[plugin]).plan.loop == "device"
    names = driver.names()[before:]
    assert names.count("launch") == 3 and not {"malloc", "context", "deserialize", "begin_capture"} & set(names)


def test_few_pictures_are_kept_and_the_oldest_goes(on_device: Restorer, driver: FakeDriver) -> None:
    loop = device_of(on_device)
    on_device.restore(smooth_photo(), plugins=["derain"], steps=1)
    clip = driver.live()["streams"] - 1
    for steps in (2, 3, 4, 1, 5, 1, 2):
        on_device.restore(smooth_photo(), plugins=["derain"], steps=steps)
        assert len(loop._stages) <= loop.kept and driver.live()["streams"] == clip + len(loop._stages)
        assert driver.live()["executables"] == len(loop._stages) and "graphs" not in driver.live()
    assert [key.steps for key in loop._stages] == [4, 5, 1, 2]


def test_idle_pictures_make_room(on_device: Restorer, driver: FakeDriver) -> None:
    for steps in (1, 2, 3):
        on_device.restore(smooth_photo(), plugins=["derain"], steps=steps)
    driver.fail("malloc", 5)
    made = on_device.restore(smooth_photo(), plugins=["derain"], steps=4)
    assert made.plan.loop == "device" and "unet" not in made.timings
    assert [key.steps for key in device_of(on_device)._stages] == [4]


def test_without_memory_the_host_goes_on(
    on_device: Restorer, plain: Restorer, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """At every allocation of the first picture; no other picture could make room."""
    expected = plain.restore(smooth_photo(), plugins=["derain"], steps=2).array
    on_device.restore(smooth_photo(), plugins=["derain"], steps=1, observe=lambda *_: None)  # loads what the host needs
    live = driver.live()
    for after in (0, 7, 18):
        driver.fail("malloc", after)
        caplog.clear()
        made = on_device.restore(smooth_photo(), plugins=["derain"], steps=2)
        assert np.abs(made.array.astype(int) - expected).max() <= 1 and "unet" in made.timings
        assert "step by step instead: malloc: made to fail" in caplog.text
        assert not device_of(on_device)._stages and driver.live() == live
    assert "unet" not in on_device.restore(smooth_photo(), plugins=["derain"], steps=2).timings


@pytest.mark.parametrize(
    ("replays", "call"),
    [
        *((False, call) for call in ("enqueue", "synchronize", "context", "open_stream")),
        *((True, call) for call in ("launch", "synchronize")),
    ],
)
def test_after_a_failure_the_next_request_works(
    on_device: Restorer, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, call: str, replays: bool
) -> None:
    """The failed picture's graph is gone, its memory too; the next request captures anew."""
    loop, photo = device_of(on_device), smooth_photo()
    run = loop.restore

    def failing(*args: Any, **more: Any) -> Array | None:
        driver.fail(call)  # here, so that it strikes in the loop and not in what comes before it
        return run(*args, **more)

    on_device.restore(photo, plugins=["derain"], steps=1)
    live = driver.live()
    if replays:
        on_device.restore(photo, plugins=["derain"], steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "restore", failing)
        with pytest.raises(EngineError, match=r"made to fail|kernel launch failed|out of luck"):
            on_device.restore(photo, plugins=["derain"], steps=2)
    assert [key.steps for key in loop._stages] == [1], "what failed is kept"
    assert driver.live() == live
    one, other = (on_device.restore(photo, plugins=["derain"], steps=2).array for _ in range(2))
    assert np.array_equal(one, other) and driver.live()["executables"] == 2


def test_cancelled_before_the_launch(on_device: Restorer, driver: FakeDriver) -> None:
    asked = []

    def cancelled() -> bool:
        asked.append(len(driver.calls))
        return len(asked) > 1

    with pytest.raises(Cancelled):
        on_device.restore(smooth_photo(), plugins=["derain", "lowlight"], steps=2, cancelled=cancelled)
    assert len(asked) == 2, "asked once before every plugin"
    assert [key.plugin for key in device_of(on_device)._stages] == ["derain"]


def test_progress_counts_every_step_once_they_are_done(on_device: Restorer) -> None:
    seen: list[tuple[int, int, str]] = []
    on_device.restore(
        smooth_photo(), plugins=["derain", "lowlight"], steps=3, progress=lambda *facts: seen.append(facts)
    )
    assert seen[0] == (0, 4, "derain") and seen[-1] == (4, 4, "lowlight")


def test_a_picture_that_is_not_finite_is_refused(on_device: Restorer, library: FakeTensorRt) -> None:
    on_device.restore(smooth_photo(), plugins=["derain"], steps=2)
    library.poisoned = {"head/derain"}
    with pytest.raises(NotFinite, match=r"derain, tensorrt-fake at fp32: 23040 of 23040 values"):
        on_device.restore(smooth_photo(), plugins=["derain"], steps=2)
    library.poisoned = set()
    assert on_device.restore(smooth_photo(), plugins=["derain"], steps=2).plan.loop == "device"


def test_requests_from_several_threads(on_device: Restorer, driver: FakeDriver) -> None:
    """Two plugins and two sizes at once: the same keys wait for each other, different ones do not mix."""
    asks = [(smooth_photo(48, 64, i), ["derain", "lowlight"][i % 2]) for i in range(4)]
    asks += [(smooth_photo(64, 48, i), "derain") for i in range(2)]
    alone = [on_device.restore(photo, plugins=[plugin], steps=2).array for photo, plugin in asks]
    wrong: list[str] = []

    def work(i: int) -> None:
        try:
            for _ in range(3):
                found = on_device.restore(asks[i][0], plugins=[asks[i][1]], steps=2).array
                if not np.array_equal(found, alone[i]):
                    wrong.append(f"request {i} differs")
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert driver.counted()["begin_capture"] == len(device_of(on_device)._stages) == 3


def test_only_idle_pictures_are_evicted(on_device: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than pictures are kept: nobody loses a picture that it works with."""
    loop = device_of(on_device)
    loop.kept = 1
    wrong: list[str] = []
    close = CapturedStage.close

    def closing(picture: CapturedStage) -> None:
        if loop._users[picture]:
            wrong.append(f"{picture.key} is in use")
        close(picture)

    monkeypatch.setattr(CapturedStage, "close", closing)

    def work(steps: int) -> None:
        try:
            for _ in range(4):
                on_device.restore(smooth_photo(), plugins=["derain"], steps=steps)
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(steps,)) for steps in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not loop._users
    on_device.restore(smooth_photo(), plugins=["derain"], steps=4)
    assert len(loop._stages) == 1


def test_a_picture_that_is_made_holds_up_no_other(on_device: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread waits for the compiler, another restores; two that want the same new picture make it once."""
    on_device.restore(smooth_photo(), plugins=["derain"], steps=1)
    begun, go, made = threading.Event(), threading.Event(), list[CaptureKey]()
    make = CapturedStage._make

    def slowly(picture: CapturedStage, engine: Any) -> None:
        made.append(picture.key)
        begun.set()
        assert go.wait(30)
        make(picture, engine)

    monkeypatch.setattr(CapturedStage, "_make", slowly)
    ask = partial(on_device.restore, smooth_photo(), plugins=["derain"], steps=2)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(ask) for _ in range(2)]
        assert begun.wait(30)
        assert on_device.restore(smooth_photo(), plugins=["derain"], steps=1).plan.loop == "device"
        go.set()
        one, other = (future.result().array for future in waiting)
    assert np.array_equal(one, other) and [key.steps for key in made] == [2]


def test_closed_while_a_picture_is_made(
    device_bundle: Bundle, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = Restorer(device_bundle, FakeTensorRtBuilder(driver), "fp32")
    make = CapturedStage._make

    def closing(picture: CapturedStage, engine: Any) -> None:
        make(picture, engine)
        device_of(restorer).close()

    monkeypatch.setattr(CapturedStage, "_make", closing)
    with pytest.raises(EngineError, match="closed"):
        restorer.restore(smooth_photo(), plugins=["derain"], steps=2)
    restorer.close()
    assert driver.live() == {}


def test_closed(device_bundle: Bundle, driver: FakeDriver) -> None:
    restorer = Restorer(device_bundle, FakeTensorRtBuilder(driver), "fp32")
    restorer.restore(smooth_photo(), plugins=["derain"])
    restorer.close()
    assert driver.live() == {}
    with pytest.raises(EngineError, match="closed"):
        restorer.restore(smooth_photo(), plugins=["derain"])
    assert driver.live() == {}
