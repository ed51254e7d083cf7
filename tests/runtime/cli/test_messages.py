"""What dp-infer prints."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np

from diffplugin.plugins.cards import shipped_cards
from diffplugin.runtime.cli.messages import (
    ProgressBar,
    loaded_line,
    memory_warning,
    plan_lines,
    refusal_lines,
    selection_line,
)
from diffplugin.runtime.planning.quality import QUALITIES
from diffplugin.runtime.request.selection import Selection
from diffplugin.runtime.restorer import Restorer


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CARDS = shipped_cards()


def test_selection() -> None:
    made = Selection(chosen=("deblur",), reason="scores above 0", scores={"deblur": 0.812, "null": -0.33})
    assert selection_line(made, CARDS) == "understood: Deblurring (deblur)"
    shown = selection_line(made, CARDS, scores=True)
    assert shown == "understood: Deblurring (deblur) [deblur +0.81, null -0.33; scores above 0]"
    nothing = replace(made, chosen=(), reason="no plugin scores above 0; only the first 75 word pieces were read")
    said = "understood: nothing that one of the 8 plugins does; only the first 75 word pieces were read"
    assert selection_line(nothing, CARDS) == said
    named = Selection(chosen=("derain", "deblur"), reason="named by the caller")
    for scores in (False, True):
        line = selection_line(named, CARDS, scores=scores)
        assert line == "derain, then deblur (named by the caller)"
    table = replace(made, compounds=("rainy-night",))
    assert selection_line(table, CARDS).endswith("Deblurring (deblur) (the request names rainy-night)")


def test_a_refusal_says_what_is_near_and_what_can_be_asked_for() -> None:
    nothing = Selection(chosen=(), reason="no plugin scores above 0", scores={"null": 1.0}, near=("lowlight",))
    lines = refusal_lines(nothing, CARDS)
    assert lines[:2] == [
        "nothing selected, nothing written",
        f'  near it: Low-light enhancement: "{CARDS["lowlight"].examples[0]}"',
    ]
    for card in CARDS.values():
        assert any(card.id in line and card.examples[0] in line for line in lines[2:])
    assert not any("near" in line for line in refusal_lines(replace(nothing, near=()), CARDS))
    assert "copied as it is" in refusal_lines(nothing, CARDS, copies=True)[0]


def test_plan_and_memory(restorer: Restorer) -> None:
    plan, _ = restorer.plan(np.zeros((200, 300, 3), np.uint8), plugins=["lowlight", "deblur"], steps=7)
    text = "\n".join(plan_lines(plan))
    assert "lowlight (7 steps, from noise), then deblur (3 steps, from the noised input)" in text
    assert "input 300x200, working 300x200, output 300x200 px" in text and "40 UNet runs" in text
    assert memory_warning(replace(plan, available=None)) is None
    assert memory_warning(replace(plan, available=2**40)) is None
    assert "--tile" in (memory_warning(replace(plan, available=1)) or "")


def test_less_work_is_said(restorer: Restorer) -> None:
    assert loaded_line(restorer) == "fake: fake fp32 (as asked)"
    restorer.quality = QUALITIES["balanced"]
    assert loaded_line(restorer) == f"fake: fake fp32 (as asked); balanced: {restorer.quality.description}"
    plan, _ = restorer.plan(np.zeros((64, 64, 3), np.uint8), plugins=["lowlight", "deblur"], steps=10)
    expected = (restorer.quality.full_steps(10), restorer.quality.scb_steps(10))
    whole, scb = (len(first) + len(rest) for first, rest in zip(expected, ((0, 2), (0, 2)), strict=True))
    assert f"13 steps: UNet whole at {whole}, outer blocks at {13 - whole}, SCB at {scb} (balanced)" in "\n".join(
        plan_lines(plan)
    )
    plan, _ = restorer.plan(np.zeros((300, 300, 3), np.uint8), plugins=["deblur"], steps=1)
    assert "1 steps: UNet whole at 1, outer blocks at 0, SCB at 1, each for 6 pieces (balanced)" in plan_lines(plan)[4]


def test_progress_bar_on_a_terminal() -> None:
    stream = _Terminal()
    bar = ProgressBar(stream, width=4)
    for done in range(3):
        bar(done, 2, "deblur")
    bar.clear()
    lines = stream.getvalue().split("\r")
    assert "[----] 0/2 deblur" in lines[1] and "[##--] 1/2 deblur" in lines[2] and "[####] 2/2 deblur" in lines[3]
    assert lines[-1] == "" and not lines[-2].strip(), "the line is wiped"
    assert "\n" not in stream.getvalue()


def test_no_progress_bar_in_a_pipe() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream)
    bar(1, 2, "deblur")
    bar.clear()
    assert stream.getvalue() == ""
