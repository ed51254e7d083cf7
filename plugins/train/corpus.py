"""Requests for the Plugin-Selector, from a small grammar: tasks, chains of tasks, and requests that no plugin serves.

``request = opener verb-phrase object closer``. Every task has its own verb phrases and nouns. The held-out part uses
*other templates and other words*, not other combinations of the same ones, so that it tells whether wording generalises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TASKS = ("derain", "desnow", "lowlight", "dehaze", "deblur", "highlight", "face", "demoire")


@dataclass(frozen=True)
class Wording:
    """How one task is asked for. ``nouns`` fill "remove the {noun}"; ``phrases`` stand alone."""

    nouns: tuple[str, ...]
    phrases: tuple[str, ...]
    held_nouns: tuple[str, ...]
    held_phrases: tuple[str, ...]


WORDS: dict[str, Wording] = {
    "derain": Wording(
        ("rain", "rain streaks", "raindrops", "rain drops", "rainy weather", "rainfall", "streaks of rain", "heavy rain",
         "rain lines", "falling rain"),
        ("derain", "derain this photo", "make it look like it is not raining", "stop the rain", "deraining",
         "it was raining when i took this, fix it", "i want a dry day without rain", "clean up this rainy picture",
         "rain removal", "the rain spoils my photo", "turn this rainy shot into a dry one", "it is raining too much"),
        ("drizzle of rain", "rain shower", "pouring rain"),
        ("rainy day photo, make it rain free", "de-rain please", "the picture is full of rain", "no more rain"),
    ),
    "desnow": Wording(
        ("snow", "snowflakes", "snow flakes", "snowfall", "falling snow", "snowy weather", "snow particles", "heavy snow",
         "flakes of snow", "snow spots"),
        ("desnow", "desnow this photo", "make it look like it is not snowing", "stop the snow", "desnowing",
         "it was snowing when i took this, fix it", "i want the scene without snow", "clean up this snowy picture",
         "snow removal", "the snow spoils my photo", "turn this snowy shot into a clear one", "it is snowing too much"),
        ("snow storm", "drifting snow", "snowflake specks"),
        ("snowy day photo, make it snow free", "de-snow please", "the picture is full of snow", "no more snow"),
    ),
    "lowlight": Wording(
        ("darkness", "low light", "dim lighting", "underexposure", "poor lighting", "dark shadows", "bad lighting",
         "lack of light", "dark exposure"),
        ("brighten this dark photo", "enhance the lighting", "make it brighter", "light up the scene", "brighten the image",
         "increase the brightness", "this photo is too dark", "low light enhancement", "enhance this low-light picture",
         "please help me enhance the lighting of this photo", "brighten it up", "improve the lighting", "lighten the picture",
         "it is underexposed, fix the exposure", "i can hardly see anything in the dark", "add more light", "brighten",
         "make the night photo brighter", "raise the exposure of this dim shot", "brighten this dark picture",
         "turn up the light"),
        ("gloomy darkness", "insufficient light", "underexposed lighting"),
        ("illuminate this dark room", "the shot came out too dim", "give me a brighter version", "boost the brightness",
         "brighten up my dark photo"),
    ),
    "dehaze": Wording(
        ("haze", "fog", "mist", "smog", "hazy air", "foggy weather", "haziness", "thick fog", "grey haze", "foggy veil"),
        ("dehaze", "dehaze this photo", "make the hazy air clear", "clear the fog", "defog", "dehazing", "haze removal",
         "it was foggy when i took this, fix it", "i want clear air without fog", "clean up this hazy picture",
         "turn this foggy shot into a clear one", "see through the mist", "the haze spoils the view", "it looks too hazy",
         "clear up the misty landscape"),
        ("morning fog", "dense haze", "misty veil"),
        ("foggy day photo, make it fog free", "de-haze please", "the mountains are lost in haze", "no more fog"),
    ),
    "deblur": Wording(
        ("blur", "motion blur", "blurriness", "camera shake", "blurry parts", "shake", "motion blurring", "unsharpness",
         "fuzziness"),
        ("deblur", "deblur this photo", "sharpen this blurry picture", "make it sharp", "make the photo sharper", "deblurring",
         "the camera moved, fix it", "my hands were shaking when i took this", "i want it sharp", "fix the shaky shot",
         "the image is blurred", "clean up this blurry picture", "blur removal", "sharpen", "it is too blurry",
         "restore the sharpness"),
        ("handshake blur", "blurring", "smeared motion blur"),
        ("blurry shot, make it crisp and sharp", "de-blur please", "everything is blurred", "no more blur"),
    ),
    "highlight": Wording(
        ("highlight", "highlights", "specular highlights", "glare", "reflections", "shiny spots", "specular reflection",
         "bright reflections", "glossy spots", "shine"),
        ("highlight removal", "dehighlight", "get the glare off the surface", "it is too shiny", "the flash left shiny spots",
         "reduce the glare", "the glossy reflections spoil the photo", "make the surface matte", "remove specularity",
         "there is a reflection on the glass, fix it", "tone down the shiny highlights"),
        ("glossy highlight", "mirror reflections", "specular glare"),
        ("the surface is shiny, make it matte", "glare removal please", "the light reflects too much", "no more glare"),
    ),
    "face": Wording(
        ("face artifacts", "face degradation", "noise on the face", "facial damage", "damage on the face",
         "low quality of the face", "face defects", "pixelation of the face"),
        ("restore the face", "restore faces", "face restoration", "fix the face", "enhance this old portrait",
         "make the face clear", "repair the faces in this photo", "improve the portrait", "recover the facial details",
         "fix my face", "the face looks bad, restore it", "restore this old portrait", "enhance the faces", "enhance the face"),
        ("facial artifacts", "poor face quality"),
        ("bring back the details of the face", "face recovery please", "the portrait face is ruined, repair it",
         "repair grandma's face"),
    ),
    "demoire": Wording(
        ("moire", "moire pattern", "moire patterns", "screen pattern", "moire stripes", "rainbow stripes of the screen",
         "colourful moire", "color moire", "moiré", "moiré patterns"),
        ("demoire", "demoire this photo", "moire removal", "i photographed a screen, fix the pattern", "demoireing",
         "get the screen stripes off this picture", "the monitor photo has stripes", "clean up this photo of a display",
         "moire spoils the photo", "the pattern of the screen is visible"),
        ("moire stripes of a monitor", "display moire", "screen moire"),
        ("photo of a monitor, make it moire free", "de-moire please", "the picture is full of moire", "no more moire"),
    ),
}  # fmt: skip
REMOVE = (
    "remove the {}", "remove {}", "remove {} from this photo", "get rid of the {}", "take away the {}", "clear the {}",
    "delete the {} in this image", "eliminate the {}", "erase {}", "please remove the {} from my picture",
    "can you remove the {}?", "i would like to remove the {}", "clean the {} off the image", "fix the {}", "without {} please",
    "could you take the {} out of this photo", "the {} should go", "help me remove {}", "no {}", "reduce the {}",
    "i hate the {} in this shot", "there is {} in the image, remove it",
)  # fmt: skip
HELD_REMOVE = (
    "would you kindly remove the {} here", "this photo suffers from {}, please repair it", "get the {} out", "wipe out the {}",
    "i don't want any {} in it", "make the {} disappear", "strip the {} from the picture",
)  # fmt: skip
OPENERS = ("", "", "", "please ", "hi, ", "can you ", "could you please ", "i want you to ", "just ")
CLOSERS = ("", "", "", " please", " in this photo", ".", "!", " for me", ", thanks")
JOIN = ("{} and {}", "{} and then {}", "{}, then {}", "{}. {}", "first {}, then {}", "{}, also {}", "{} and also {}",
        "{} & {}")  # fmt: skip
HELD_JOIN = ("{} as well as {}", "{}; afterwards {}", "both {} and {}")
PAIR = ("remove {} and {}", "remove the {} and the {}", "get rid of {} and {}", "remove both {} and {}",
        "please remove the {} and {} from this photo", "take away the {}, and the {}", "clear {} and {}",
        "eliminate the {} plus the {}")  # fmt: skip
HELD_PAIR = ("wipe out the {} and {}", "the {} and the {} should disappear", "i don't want any {} or {}")

_SUBJECTS = ("cat", "dog", "car", "tree", "house", "person", "man", "woman", "sky", "background", "boat", "table", "hat",
             "flower", "bird", "bridge", "logo", "watermark", "text", "people", "building", "horse", "river")  # fmt: skip
_STYLES = ("watercolor painting", "cartoon", "pencil sketch", "oil painting", "poster", "comic", "pixel art", "3d render",
           "van gogh painting", "black and white photo", "postcard", "sticker", "anime drawing", "film noir still")  # fmt: skip
_COLOURS = ("red", "blue", "green", "yellow", "purple", "pink", "orange", "sepia")
IRRELEVANT = (
    "", "hello", "hi", "thanks", "ok", "yes", "what is this?", "tell me a joke", "who are you", "describe the picture",
    "do nothing", "leave it as it is", "asdf", "test", "good morning", "what time is it", "write a poem", "how are you",
    "rotate the image", "crop the image", "flip it horizontally", "resize to 800 pixels", "zoom in", "make it smaller",
    "convert to png", "count the people", "translate this", "print it", "save the file", "upscale twice", "add a frame",
    "colorize this", "write a caption", "who took this?", "swap the faces of two cats", "12345", "lorem ipsum", "...", "?",
)  # fmt: skip
_EDITS = (
    "make it a {style}", "turn this into a {style}", "make it look like a {style}", "change the {subject} to {colour}",
    "add a {subject}", "remove the {subject}", "replace the {subject} with a {other}", "paint the {subject} {colour}",
    "put a {subject} next to the {other}", "make the {subject} bigger", "delete the {subject}", "crop to the {subject}",
    "what is the {subject} doing", "is there a {subject} in the photo?", "please add a {colour} {subject}",
    "move the {subject} to the left", "get rid of the {subject}", "give the {subject} a {colour} {other}", "draw a {subject}",
    "apply a {colour} tint", "convert to a {style}",
)  # fmt: skip
_HELD_EDITS = (
    "redraw everything as a {style}", "swap the {subject} for a {other}", "insert a {colour} {subject} on the right",
    "how many {other}s are near the {subject}", "recolour the {subject} in {colour}", "i would love a {style} of this",
)  # fmt: skip
_HELD_IRRELEVANT = ("good evening", "goodbye", "what a nice day", "tilt the image by ten degrees", "qwerty", "who is this man",
                    "export as jpeg", "sing a song", "set as wallpaper", "cut out the middle")  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A request and the tasks that it asks for (none: irrelevant)."""

    text: str
    tasks: tuple[str, ...]


def _single(task: str, rng: np.random.Generator, held: bool) -> str:
    words, pick = WORDS[task], rng.choice
    if held:
        if rng.random() < 0.5:
            return str(pick(words.held_phrases))
        # new templates, half of the time with new nouns too
        nouns = words.held_nouns if rng.random() < 0.5 else words.nouns
        return str(pick(HELD_REMOVE)).format(pick(nouns))
    if rng.random() < 0.45:
        return str(pick(words.phrases))
    return str(pick(REMOVE)).format(pick(words.nouns))


def _multi(tasks: Sequence[str], rng: np.random.Generator, held: bool) -> str:
    a, b = tasks
    if rng.random() < 0.5:
        nouns = [str(rng.choice(WORDS[t].nouns)) for t in (a, b)]
        return str(rng.choice(HELD_PAIR if held else PAIR)).format(*nouns)
    return str(rng.choice(HELD_JOIN if held else JOIN)).format(_single(a, rng, held), _single(b, rng, held))


def _edit(rng: np.random.Generator, held: bool) -> str:
    if rng.random() < 0.3:
        return str(rng.choice(_HELD_IRRELEVANT if held else IRRELEVANT))
    subject, other = rng.choice(_SUBJECTS, 2, replace=False)
    template = str(rng.choice(_HELD_EDITS if held else _EDITS))
    return template.format(subject=subject, other=other, style=rng.choice(_STYLES), colour=rng.choice(_COLOURS))


def sample(kind: str, rng: np.random.Generator, *, held: bool) -> Request:
    """One request of ``kind``: "single", "multi" (two tasks), "mixed" (one task and an irrelevant wish) or "none"."""
    if kind == "none":
        return Request(_edit(rng, held), ())
    a, b = (str(t) for t in rng.choice(TASKS, 2, replace=False))
    tasks: tuple[str, ...] = (a,)
    if kind == "multi":
        text, tasks = _multi((a, b), rng, held), (a, b)
    elif kind == "mixed":
        parts = [_single(a, rng, held), _edit(rng, held) or "hello"]
        if rng.random() < 0.5:
            parts.reverse()
        text = str(rng.choice(HELD_JOIN if held else JOIN)).format(*parts)
    else:
        text = _single(a, rng, held)
        if not held:
            text = str(rng.choice(OPENERS)) + text + str(rng.choice(CLOSERS))
    if rng.random() < 0.3:
        text = text[:1].upper() + text[1:]
    return Request(text, tasks)


def corpus(count: int, seed: int, *, held: bool) -> list[Request]:
    """``count`` distinct requests: half single-task, a fifth each of two tasks and of none, a tenth mixed."""
    rng = np.random.default_rng(seed)
    found: dict[str, Request] = {}
    for _ in range(40 * count):
        kind = str(rng.choice(("single", "multi", "none", "mixed"), p=(0.5, 0.2, 0.2, 0.1)))
        request = sample(kind, rng, held=held)
        found.setdefault(request.text, request)
        if len(found) == count:
            break
    return list(found.values())
