"""The words of the request corpus: how each task is asked for, and what no plugin does. Data; see ``corpus``.

Whole requests are in ``requests/``: ``learned.csv`` for training and ``held_out.csv`` for scores alone.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Wording:
    """How one task is asked for: ``nouns`` fill "remove the {noun}", ``phrases`` stand alone, ``held`` are for scores
    alone."""

    nouns: tuple[str, ...]
    phrases: tuple[str, ...]
    held: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A request and the tasks that it asks for (none: irrelevant)."""

    text: str
    tasks: tuple[str, ...]


@cache
def written(name: str) -> tuple[tuple[str, Request], ...]:
    """(kind, request) of ``requests/<name>.csv``; kinds as in ``corpus.KINDS``."""
    file = resources.files("diffplugin.plugins.train") / f"requests/{name}.csv"
    rows = csv.DictReader(file.read_text("utf-8").splitlines())
    return tuple((row["kind"], Request(row["request"], tuple(row["tasks"].split()))) for row in rows)


def phrases(name: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """The requests of ``requests/<name>.csv`` that ask for exactly these tasks, and for nothing else."""
    kind = ("none", "single", "multi")[min(len(tasks), 2)]
    return tuple(r.text for k, r in written(name) if k == kind and r.tasks == tuple(tasks))


# fmt: off
_NOUNS: dict[str, tuple[str, ...]] = {
    "derain": (
        "rain", "rain streaks", "raindrops", "rain drops", "rainy weather", "rainfall", "streaks of rain", "heavy rain",
        "rain lines", "falling rain", "drizzle", "rain shower", "pouring rain", "downpour", "showers", "rainstorm",
        "drops", "water streaks", "wet streaks", "falling drops", "cloudburst", "raining", "rain marks", "water drops",
        "raindrop trails", "rain traces", "thunderstorm rain", "sleeting rain lines",
    ),
    "desnow": (
        "snow", "snowflakes", "snow flakes", "snowfall", "falling snow", "snowy weather", "snow particles",
        "heavy snow", "flakes of snow", "snow spots", "snowflake pattern", "snowflake marks", "snow storm",
        "drifting snow", "snowflake specks", "blizzard", "flurries", "flakes", "white flakes", "snowstorm", "flurry",
        "snow flurries", "whirling flakes", "blowing snow", "white specks of snow", "snowing", "snow dots",
        "falling flakes",
    ),
    "lowlight": (
        "darkness", "low light", "dim lighting", "underexposure", "poor lighting", "dark shadows", "bad lighting",
        "lack of light", "dark exposure", "gloomy darkness", "insufficient light", "underexposed lighting", "gloom",
        "dimness", "murky darkness", "blackness", "poor light", "dark look", "too dark exposure", "weak light",
        "night darkness", "missing light", "shadowy darkness", "low brightness",
    ),
    "dehaze": (
        "haze", "fog", "mist", "smog", "hazy air", "foggy weather", "haziness", "thick fog", "grey haze", "foggy veil",
        "misty air", "misty haze", "morning fog", "dense haze", "misty veil", "smoke", "fogginess", "murk", "grey veil",
        "mistiness", "hazy veil", "milky haze", "smoke haze", "low clouds of fog", "air pollution", "white veil",
        "dust haze", "foggy air", "hazy layer",
    ),
    "deblur": (
        "blur", "motion blur", "blurriness", "camera shake", "blurry parts", "shake", "motion blurring", "unsharpness",
        "fuzziness", "handshake blur", "blurring", "smeared motion blur", "softness", "smear", "smearing", "ghosting",
        "out of focus blur", "defocus", "focus blur", "wobble", "camera motion", "shakiness", "missed focus",
        "soft focus", "blurred look", "blurry look", "jitter",
    ),
    "highlight": (
        "highlight", "highlights", "specular highlights", "glare", "reflections", "shiny spots", "specular reflection",
        "bright reflections", "glossy spots", "shine", "light reflections", "glossy highlight", "mirror reflections",
        "specular glare", "hot spots", "hotspots", "glint", "glints", "sheen", "gloss", "flash spots", "shininess",
        "flash reflection", "lamp reflections", "sun glare", "light spots", "glossiness", "blown out spots",
        "white shine",
    ),
    "face": (
        "face artifacts", "face degradation", "noise on the face", "facial damage", "damage on the face",
        "low quality of the face", "face defects", "pixelation of the face", "facial flaws", "facial noise",
        "facial artifacts", "poor face quality", "damaged face", "blocky face", "ruined portrait", "broken faces",
        "degraded faces", "pixelated faces", "bad face quality", "damage in the portrait", "unrecognizable faces",
    ),
    "demoire": (
        "moire", "moire pattern", "moire patterns", "screen pattern", "moire stripes", "rainbow stripes of the screen",
        "colourful moire", "color moire", "moiré", "moiré patterns", "moire stripes of a monitor", "display moire",
        "screen moire", "wavy lines of the screen", "rainbow bands", "ripple pattern", "interference pattern",
        "wavy pattern", "screen stripes", "ripples of the display", "rainbow ripples", "moire effect",
        "interference stripes", "screen door pattern", "monitor lines", "rainbow pattern", "pixel grid of the screen",
    ),
}
WORDS: dict[str, Wording] = {
    task: Wording(nouns=nouns, phrases=phrases("learned", (task,)), held=phrases("held_out", (task,)))
    for task, nouns in _NOUNS.items()
}
REMOVE = (
    "remove the {}", "remove {}", "remove {} from this photo", "get rid of the {}", "take away the {}",
    "clear the {}", "delete the {} in this image", "eliminate the {}", "erase {}",
    "please remove the {} from my picture", "can you remove the {}?", "i would like to remove the {}",
    "clean the {} off the image", "fix the {}", "without {} please", "could you take the {} out of this photo",
    "the {} should go", "help me remove {}", "no {}", "reduce the {}", "i hate the {} in this shot",
    "there is {} in the image, remove it", "repair the {}", "correct the {} please", "the {} needs to be repaired",
    "my picture has {}, can you fix it", "restore this photo, it has {}", "improve this image by removing the {}",
    "cut down on the {}", "keep everything but the {}", "would you kindly remove the {} here",
    "this photo suffers from {}, please repair it", "get the {} out", "wipe out the {}", "i don't want any {} in it",
    "make the {} disappear", "strip the {} from the picture", "no more {}", "kill the {}", "too much {}", "lose the {}",
    "{} removal", "undo the {}", "the {} ruins it", "there's {} everywhere", "the picture is full of {}", "zap the {}",
    "{} all over the place, sort it out", "deal with the {}", "what can you do about the {}?", "so much {}, help",
    "can we get this without the {}", "clean up the {}", "suppress the {}", "filter out the {}", "{} free version",
    "the {} spoils everything", "sort out the {}", "the {} bothers me", "i wish there was no {}", "let the {} vanish",
    "show me how it looks without {}", "{} has to go", "make it look like there was never any {}", "{}, fix it",
    "lift the {}", "the {} is hiding the details", "drop the {}", "scrub away the {}", "tidy up the {}", "cure the {}",
    "counteract the {}", "there was {} when i took it", "the {} is distracting", "the {} is annoying, take it out",
)
VERBS = (
    "remove", "delete", "erase", "get rid of", "take out", "take away", "take off", "clear", "clean", "clean up",
    "fix", "kill", "wipe", "wipe away", "wipe off", "wipe out", "eliminate", "cut out", "cut", "lose", "undo", "zap",
    "clear up", "clear away", "drop", "banish", "strip", "edit out", "filter out", "correct", "repair", "reduce",
    "lessen", "remedy", "sort out", "stop", "end", "purge", "dissolve", "hide", "minimise", "minimize", "suppress",
    "neutralise", "strip away", "help with", "deal with", "do something about", "scrub", "rub out", "brush away",
    "chase away", "cancel", "destroy", "cure", "heal", "pull out", "retouch", "mend", "tackle", "combat", "defeat",
    "subtract", "extract", "vanish",
)
DETERMINERS = (
    "", "", "the", "the", "all the", "all", "this", "that", "any", "the ugly", "the annoying", "some of the", "my",
)
PLACES = (
    "", "", "", "", "in this photo", "from this photo", "from the picture", "in the picture", "from my image", "here",
    "in front of the {subject}", "over the {subject}", "around the {subject}", "from this picture of a {subject}",
    "so that the {subject} can be seen", "from the photo of my {subject}", "on the {subject}", "near the {subject}",
)
MORE = (  # the opposite, questions and tolerance: for nothing
    "add {}", "add some {}", "more {}", "put {} in", "make {}", "i like the {}", "keep the {}", "leave the {}",
    "what is {}?", "what causes {}?", "how do i avoid {}?", "add {} to the {subject}", "simulate {}",
    "a picture with {}", "why is there {}", "i love {}", "draw {}", "insert {} behind the {subject}",
    "don't remove the {}", "the {} is beautiful, leave it", "is that {}?", "will there be {} tomorrow?",
    "give it more {}", "create {}", "{} effect please, more of it",
)
OPENERS = (
    "", "", "", "please ", "hi, ", "can you ", "could you please ", "i want you to ", "just ", "hey, ", "would you ",
    "i need you to ", "help me ", "try to ", "kindly ",
)
CLOSERS = (
    "", "", "", " please", " in this photo", ".", "!", " for me", ", thanks", " if you can", "?", " pls", " here",
    " as well as possible", " in my picture",
)
JOIN = (
    "{} and {}", "{} and then {}", "{}, then {}", "{}. {}", "first {}, then {}", "{}, also {}", "{} and also {}",
    "{} & {}", "{} as well as {}", "{}; afterwards {}", "{}, and {}", "{} but also {}", "{} plus {}", "{}, {}",
    "{} + {}", "{}, and after that {}", "{}; {}", "{}. also {}", "{} and while you are at it {}", "{}, and please {}",
    "{}, and could you also {}", "once you {}, {}", "{} too, and {}", "not only {}, also {}", "both {} and {}",
)
PAIR = (
    "remove {} and {}", "remove the {} and the {}", "get rid of {} and {}", "remove both {} and {}",
    "please remove the {} and {} from this photo", "take away the {}, and the {}", "clear {} and {}",
    "eliminate the {} plus the {}", "wipe out the {} and {}", "the {} and the {} should disappear",
    "i don't want any {} or {}", "there is {} and {} in it", "fix the {} and the {}", "no {} and no {} please",
    "take out {}, {}", "my photo has both {} and {}", "{} and {} everywhere", "it suffers from {} and also {}",
    "kill the {} and the {}", "{} plus {}, fix both", "between the {} and the {} you can't see anything",
    "neither {} nor {}", "without the {} and the {}", "the {} is bad and so is the {}", "lose the {} and the {} too",
)
SUBJECTS = (
    "cat", "dog", "car", "tree", "house", "person", "man", "woman", "sky", "background", "boat", "table", "hat",
    "flower", "bird", "bridge", "logo", "watermark", "text", "people", "building", "horse", "river", "street",
    "tourist", "garden", "bride", "children", "wedding", "window", "screen", "dress", "mountains", "beach", "church",
    "shirt", "grandmother", "baby", "party", "shop", "concert", "bicycle", "lamp", "road", "door", "food", "watch",
    "museum",
)
STYLES = (
    "watercolor painting", "cartoon", "pencil sketch", "oil painting", "poster", "comic", "pixel art", "3d render",
    "van gogh painting", "black and white photo", "postcard", "sticker", "anime drawing", "film noir still",
)
COLOURS = (
    "red", "blue", "green", "yellow", "purple", "pink", "orange", "sepia",
)
IRRELEVANT = ("", *phrases("learned", ()))
EDITS = (
    "make it a {style}", "turn this into a {style}", "make it look like a {style}",
    "change the {subject} to {colour}", "add a {subject}", "remove the {subject}",
    "replace the {subject} with a {other}", "paint the {subject} {colour}", "put a {subject} next to the {other}",
    "make the {subject} bigger", "delete the {subject}", "crop to the {subject}", "what is the {subject} doing",
    "is there a {subject} in the photo?", "please add a {colour} {subject}", "move the {subject} to the left",
    "get rid of the {subject}", "give the {subject} a {colour} {other}", "draw a {subject}", "apply a {colour} tint",
    "convert to a {style}", "redraw everything as a {style}", "swap the {subject} for a {other}",
    "insert a {colour} {subject} on the right", "how many {other}s are near the {subject}",
    "recolour the {subject} in {colour}", "i would love a {style} of this", "hide the {subject}",
    "erase the {subject} behind the {other}", "blur the {subject}", "where was this {subject} photographed",
    "make the {subject} {colour} and the {other} smaller", "the {subject} should be {colour}", "cut out the {subject}",
    "photoshop a {subject} into it", "take the {subject} out", "print this as a {style}", "give it a {style} look",
)
# fmt: on
