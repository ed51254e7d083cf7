"""What a photo needs, from what the graph says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffplugin.bundle import Bundle
from diffplugin.errors import NotFinite, RequestError
from diffplugin.runtime.request.diagnosis import Finding, described, needed_tasks
from diffplugin.runtime.request.selection import NOTHING_FOUND, select_found
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array
from tests.runtime.conftest import DIAGNOSED, FakeModel, smooth_photo


def _red() -> Array:
    red = np.ascontiguousarray(np.stack([np.full((64, 80), v, np.uint8) for v in (230, 120, 120)], -1))
    red[0, 0] = 0  # of one colour throughout it would need nothing
    return red


def test_thresholds_decide_and_one_lack_of_detail_is_restored_once() -> None:
    assert needed_tasks({"derain": (0.7, 0.6), "dehaze": (0.7, 0.8)}) == {"derain"}
    assert needed_tasks({"deblur": (0.9, 0.5), "face": (0.8, 0.5), "lowlight": (0.6, 0.5)}) == {"deblur", "lowlight"}
    assert needed_tasks({"deblur": (0.9, 0.95), "face": (0.8, 0.5)}) == {"face"}


def test_findings_of_every_task(restorer: Restorer) -> None:
    found = restorer.diagnose(_red())
    assert tuple(one.task for one in found) == DIAGNOSED
    assert {one.task for one in found if one.needed} == {"derain", "desnow"}
    assert found[0].probability == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4) and found[0].degree == "strong"
    assert not any(one.needed for one in restorer.diagnose(smooth_photo()))


def test_one_colour_throughout_needs_nothing(restorer: Restorer) -> None:
    red = _red()
    red[0, 0] = red[1, 1]
    assert not any(one.needed or one.probability for one in restorer.diagnose(red))


def test_plugins_that_are_not_there_are_named() -> None:
    found = tuple(
        Finding(task=task, probability=p, threshold=0.5, strength=0.2, needed=p > 0.5)
        for task, p in (("derain", 0.8), ("desnow", 0.9), ("deblur", 0.1))
    )
    assert described(found, ["derain"]) == "desnow 90% (slight, not in this bundle), derain 80% (slight)"
    selection = select_found(found, ["deblur", "derain"])
    assert selection.chosen == ("derain",) and selection.to_json()["findings"][1]["task"] == "desnow"
    assert select_found(found[2:], ["deblur"]).reason == NOTHING_FOUND


def test_a_bundle_without_a_diagnosis_says_so(fake_bundle: Bundle, model: FakeModel) -> None:
    bundle = Bundle(fake_bundle.path, replace(fake_bundle.manifest, diagnosis=()))
    with Restorer(bundle, model, "fp32") as restorer:
        for request in ("auto", None, ""):
            with pytest.raises(RequestError, match=r"fake: this bundle has no diagnosis .* say it in words"):
                restorer.plan(smooth_photo(), request)
        plan, selection = restorer.plan(smooth_photo(), "fix this")
        assert plan.chain == () and selection.scores, "the selector answers general wishes, as before"


def test_numbers_that_are_not_finite_are_refused(restorer: Restorer, model: FakeModel) -> None:
    nan = np.full((1, len(DIAGNOSED)), np.nan, np.float32)
    model.swap("diagnosis", lambda inputs: {"logits": nan, "strengths": nan})
    with pytest.raises(NotFinite, match="diagnosis"):
        restorer.diagnose(smooth_photo())
