"""The page in headless Chromium, by real clicks and keys. Watched: it asks nobody but its own server."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium (Debian: apt-get install chromium)", allow_module_level=True)

from diffplugin.runtime.serve.settings import hashed
from tests.runtime.conftest import smooth_photo
from tests.runtime.serve.conftest import Gate, Running, photo_bytes

Serve = Callable[..., Running]
WAIT = 20_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages of a server. At the end: no request left this machine, no script failed."""
    contexts, strange, faults = [], [], []

    def open_at(running: Running, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        context.set_default_timeout(WAIT)
        contexts.append(context)

        def watch(request: Any) -> None:
            if not request.url.startswith((running.url, "blob:", "data:")):
                strange.append(request.url)

        context.on("request", watch)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(running.url)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert strange == [] and faults == []


def photo(name: str = "photo.png", seed: int = 0) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": photo_bytes(96, 128, seed)}


def add(page: Any, *photos: dict[str, Any]) -> None:
    page.set_input_files("#files", list(photos or (photo(),)))
    page.locator(".photo canvas").wait_for()


def result(page: Any) -> Any:
    """Pixels of what the download button gives."""
    with page.expect_download() as download:
        page.click("#download")
    return download.value.suggested_filename, np.asarray(Image.open(Path(download.value.path())).convert("RGB"))


def finished(page: Any) -> Any:
    slider = page.locator("img-comparison-slider.rendered")
    slider.wait_for()
    return slider


def seen_box(element: Any) -> Any:
    """Where the element lies once it is scrolled into view; the mouse reaches nothing outside."""
    element.scroll_into_view_if_needed()
    return element.bounding_box()


def test_upload_request_progress_slider_download(
    serve: Serve, open_page: Callable[..., Any], gate: Gate, tmp_path: Path
) -> None:
    running = serve()
    page = open_page(running)
    page.get_by_text("ready (fake, fake fp32)").wait_for()
    assert page.get_by_role("button", name="Restore").is_disabled()
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose photos").click()
    chooser.value.set_files([photo("a dark one.png")])
    page.locator(".photo canvas").wait_for()
    gate.opened.clear()
    page.get_by_label("What should be improved?").fill("dark rain")
    page.get_by_text("Options").click()
    page.get_by_label("Steps").fill("4")
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("derain: step 0 of 7").wait_for()
    page.get_by_text("Rain removal, then Low-light enhancement, as understood from your words").wait_for()
    assert page.get_by_role("button", name="Cancel").is_visible()
    gate.opened.set()
    slider = finished(page)
    page.get_by_text("Rain removal, then Low-light enhancement in").wait_for()
    box = seen_box(slider)
    before = page.screenshot()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 40, steps=4)
    page.mouse.up()
    began = time.monotonic()
    while page.screenshot() == before:
        assert time.monotonic() - began < WAIT / 1000, "the slider did not move"
    name, made = result(page)
    assert name == "a dark one-restored.png"
    expected = running.service.models.get(None).restore(smooth_photo(96, 128), "dark rain", steps=4).array
    np.testing.assert_array_equal(made, expected)
    page.screenshot(path=tmp_path / "page.png")


def test_the_brush_restores_a_part_and_erases(serve: Serve, open_page: Callable[..., Any]) -> None:
    page = open_page(serve())
    add(page)
    page.get_by_role("button", name="Low-light enhancement").click()
    page.get_by_role("button", name="Brush", exact=True).click()
    box = seen_box(page.locator(".photo canvas"))

    def drag(x0: float, y0: float, x1: float, y1: float) -> None:
        page.mouse.move(box["x"] + box["width"] * x0, box["y"] + box["height"] * y0)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * x1, box["y"] + box["height"] * y1, steps=6)
        page.mouse.up()

    drag(0.2, 0.3, 0.8, 0.3)
    drag(0.2, 0.8, 0.8, 0.8)
    page.get_by_role("button", name="Eraser").click()
    drag(0.1, 0.8, 0.9, 0.8)
    page.get_by_role("button", name="Restore").click()
    finished(page)
    changed = (result(page)[1] != smooth_photo(96, 128)).any(2)
    assert changed[29, 30:95].all() and not changed[60:].any() and not changed[:, :10].any()
    page.get_by_role("button", name="Brush", exact=True).click()  # once more, on the photo itself
    page.locator(".photo canvas").wait_for()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Restore").click()
    finished(page)
    assert (result(page)[1] != smooth_photo(96, 128)).any(2).mean() > 0.9
    assert page.locator("#history li").count() == 2


def test_by_keyboard_alone(serve: Serve, open_page: Callable[..., Any]) -> None:
    page = open_page(serve())
    page.locator("#plugins button").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.set_input_files("#files", [photo()])
    page.locator(".photo canvas").wait_for()
    page.focus("#brush")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    page.focus("#prompt")
    page.keyboard.type("dark")
    page.keyboard.press("Enter")
    slider = finished(page)
    changed = (result(page)[1] != smooth_photo(96, 128)).any(2)
    assert changed[48, 64:85].all() and not changed[:30].any()
    slider.focus()
    before = page.screenshot()
    page.keyboard.down("ArrowLeft")
    page.wait_for_timeout(300)
    page.keyboard.up("ArrowLeft")
    assert page.screenshot() != before


def test_cancel(serve: Serve, open_page: Callable[..., Any], gate: Gate) -> None:
    page = open_page(serve())
    add(page)
    gate.opened.clear()
    page.fill("#prompt", "rain")
    page.click("#restore")
    gate.wait_inside()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelling").wait_for()
    gate.opened.set()
    page.get_by_role("alert").get_by_text("Cancelled.").wait_for()
    page.click("#restore")  # and once more
    finished(page)


def test_errors_are_the_servers_words(serve: Serve, open_page: Callable[..., Any]) -> None:
    page = open_page(serve())
    page.set_input_files("#files", [{"name": "notes.png", "mimeType": "image/png", "buffer": b"hello"}])
    page.get_by_text("This browser cannot show the file").wait_for()
    page.fill("#prompt", "rain")
    page.click("#restore")
    page.get_by_role("alert").get_by_text("notes.png: not a picture (begins with 'hello')").wait_for()
    add(page, photo("fine.png"))
    page.fill("#prompt", "nothing of the kind")
    page.click("#restore")
    page.get_by_role("alert").get_by_text("nothing selected").wait_for()
    assert not page.locator("#why").is_visible()


def test_two_tabs_and_several_files(serve: Serve, open_page: Callable[..., Any]) -> None:
    running = serve()
    first, second = open_page(running), open_page(running)
    add(first, *(photo(f"{seed}.png", seed) for seed in range(4)))
    add(second, photo("other.png", 9))
    for page in (first, second):
        page.fill("#prompt", "dark")
    assert first.locator("#restore").inner_text() == "Restore 4 photos"
    first.click("#restore")
    second.click("#restore")
    for page, count in ((first, 4), (second, 1)):
        done = page.locator("#history span").filter(has_text="✓")
        sync_api.expect(done).to_have_count(count, timeout=WAIT)
    restorer = running.service.models.get(None)
    for seed in range(4):
        first.locator("#history button").nth(seed).click()
        finished(first)
        name, made = result(first)
        assert name == f"{seed}-restored.png"
        np.testing.assert_array_equal(made, restorer.restore(smooth_photo(96, 128, seed), "dark").array)
    finished(second)
    assert second.locator("#history li").count() == 1


def test_paste_and_drop(serve: Serve, open_page: Callable[..., Any]) -> None:
    page = open_page(serve())
    data = list(photo_bytes())
    script = """([kind, data]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(data)], `${kind}.png`, {type: "image/png"}));
        const paste = () => new ClipboardEvent(kind, {clipboardData: transfer});
        document.dispatchEvent(kind == "paste" ? paste() : new DragEvent(kind, {dataTransfer: transfer}));
    }"""
    for count, kind in enumerate(("paste", "drop"), 1):
        page.evaluate(script, [kind, data])
        page.get_by_title(f"{kind}.png").wait_for()
        assert page.locator("#history li").count() == count


def test_a_token_is_asked_for_and_kept_in_the_tab(serve: Serve, open_page: Callable[..., Any]) -> None:
    page = open_page(serve(tokens={hashed("k" * 20): "anna"}))
    page.get_by_label("This server needs a token").fill("k" * 20)
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("ready (").wait_for()
    add(page)
    page.fill("#prompt", "rain")
    page.click("#restore")
    finished(page)


def test_on_a_phone_in_the_dark(serve: Serve, open_page: Callable[..., Any], tmp_path: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 800}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
    page = open_page(serve(), color_scheme="dark", **phone)
    add(page)
    page.get_by_role("button", name="Rain removal").tap()
    page.get_by_role("button", name="Restore").tap()
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing hangs over the side"
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    assert shot[10:60, :20].mean() < 60, "a dark ground"
    small = [
        button
        for button in page.locator("button:visible, .button:visible").all()
        if button.bounding_box()["height"] < 40 and button.get_attribute("title") is None
    ]
    assert small == [], "a thumb hits every button"
    assert tmp_path.exists()
