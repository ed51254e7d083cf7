"""The words of the request corpus: how each task is asked for, and what no plugin does. Data; see ``corpus``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """How one task is asked for. ``nouns`` fill "remove the {noun}"; ``phrases`` stand alone."""

    nouns: tuple[str, ...]
    phrases: tuple[str, ...]
    held_nouns: tuple[str, ...]
    held_phrases: tuple[str, ...]


# fmt: off
WORDS: dict[str, Wording] = {
    "derain": Wording(
        nouns=(
            "rain", "rain streaks", "raindrops", "rain drops", "rainy weather", "rainfall", "streaks of rain",
            "heavy rain", "rain lines", "falling rain",
        ),
        phrases=(
            "derain", "derain this photo", "make it look like it is not raining", "stop the rain", "deraining",
            "it was raining when i took this, fix it", "i want a dry day without rain",
            "clean up this rainy picture", "rain removal", "the rain spoils my photo",
            "turn this rainy shot into a dry one", "it is raining too much",
        ),
        held_nouns=(
            "drizzle of rain", "rain shower", "pouring rain",
        ),
        held_phrases=(
            "rainy day photo, make it rain free", "de-rain please", "the picture is full of rain", "no more rain",
        ),
    ),
    "desnow": Wording(
        nouns=(
            "snow", "snowflakes", "snow flakes", "snowfall", "falling snow", "snowy weather", "snow particles",
            "heavy snow", "flakes of snow", "snow spots", "snowflake pattern", "snowflake marks",
        ),
        phrases=(
            "desnow", "desnow this photo", "make it look like it is not snowing", "stop the snow", "desnowing",
            "it was snowing when i took this, fix it", "i want the scene without snow",
            "clean up this snowy picture", "snow removal", "the snow spoils my photo",
            "turn this snowy shot into a clear one", "it is snowing too much",
        ),
        held_nouns=(
            "snow storm", "drifting snow", "snowflake specks",
        ),
        held_phrases=(
            "snowy day photo, make it snow free", "de-snow please", "the picture is full of snow", "no more snow",
        ),
    ),
    "lowlight": Wording(
        nouns=(
            "darkness", "low light", "dim lighting", "underexposure", "poor lighting", "dark shadows",
            "bad lighting", "lack of light", "dark exposure",
        ),
        phrases=(
            "brighten this dark photo", "enhance the lighting", "make it brighter", "light up the scene",
            "brighten the image", "increase the brightness", "this photo is too dark", "low light enhancement",
            "enhance this low-light picture", "please help me enhance the lighting of this photo", "brighten it up",
            "improve the lighting", "lighten the picture", "it is underexposed, fix the exposure",
            "i can hardly see anything in the dark", "add more light", "brighten", "make the night photo brighter",
            "raise the exposure of this dim shot", "brighten this dark picture", "turn up the light",
        ),
        held_nouns=(
            "gloomy darkness", "insufficient light", "underexposed lighting",
        ),
        held_phrases=(
            "illuminate this dark room", "the shot came out too dim", "give me a brighter version",
            "boost the brightness", "brighten up my dark photo",
        ),
    ),
    "dehaze": Wording(
        nouns=(
            "haze", "fog", "mist", "smog", "hazy air", "foggy weather", "haziness", "thick fog", "grey haze",
            "foggy veil", "misty air", "misty haze",
        ),
        phrases=(
            "dehaze", "dehaze this photo", "make the hazy air clear", "clear the fog", "defog", "dehazing",
            "haze removal", "it was foggy when i took this, fix it", "i want clear air without fog",
            "clean up this hazy picture", "turn this foggy shot into a clear one", "see through the mist",
            "the haze spoils the view", "it looks too hazy", "clear up the misty landscape",
        ),
        held_nouns=(
            "morning fog", "dense haze", "misty veil",
        ),
        held_phrases=(
            "foggy day photo, make it fog free", "de-haze please", "the mountains are lost in haze", "no more fog",
        ),
    ),
    "deblur": Wording(
        nouns=(
            "blur", "motion blur", "blurriness", "camera shake", "blurry parts", "shake", "motion blurring",
            "unsharpness", "fuzziness",
        ),
        phrases=(
            "deblur", "deblur this photo", "sharpen this blurry picture", "make it sharp", "make the photo sharper",
            "deblurring", "the camera moved, fix it", "my hands were shaking when i took this", "i want it sharp",
            "fix the shaky shot", "the image is blurred", "clean up this blurry picture", "blur removal", "sharpen",
            "it is too blurry", "restore the sharpness",
        ),
        held_nouns=(
            "handshake blur", "blurring", "smeared motion blur",
        ),
        held_phrases=(
            "blurry shot, make it crisp and sharp", "de-blur please", "everything is blurred", "no more blur",
        ),
    ),
    "highlight": Wording(
        nouns=(
            "highlight", "highlights", "specular highlights", "glare", "reflections", "shiny spots",
            "specular reflection", "bright reflections", "glossy spots", "shine", "light reflections",
        ),
        phrases=(
            "highlight removal", "dehighlight", "get the glare off the surface", "it is too shiny",
            "the flash left shiny spots", "reduce the glare", "the glossy reflections spoil the photo",
            "make the surface matte", "remove specularity", "there is a reflection on the glass, fix it",
            "tone down the shiny highlights", "too much light is reflected", "the lamp reflects in the glass",
            "the window is reflected in the table", "the metal reflects the sun",
        ),
        held_nouns=(
            "glossy highlight", "mirror reflections", "specular glare",
        ),
        held_phrases=(
            "the surface is shiny, make it matte", "glare removal please", "the light reflects too much",
            "no more glare",
        ),
    ),
    "face": Wording(
        nouns=(
            "face artifacts", "face degradation", "noise on the face", "facial damage", "damage on the face",
            "low quality of the face", "face defects", "pixelation of the face", "facial flaws", "facial noise",
        ),
        phrases=(
            "restore the face", "restore faces", "face restoration", "fix the face", "enhance this old portrait",
            "make the face clear", "repair the faces in this photo", "improve the portrait",
            "recover the facial details", "fix my face", "the face looks bad, restore it",
            "restore this old portrait", "enhance the faces", "enhance the face",
        ),
        held_nouns=(
            "facial artifacts", "poor face quality",
        ),
        held_phrases=(
            "bring back the details of the face", "face recovery please", "the portrait face is ruined, repair it",
            "repair grandma's face",
        ),
    ),
    "demoire": Wording(
        nouns=(
            "moire", "moire pattern", "moire patterns", "screen pattern", "moire stripes",
            "rainbow stripes of the screen", "colourful moire", "color moire", "moiré", "moiré patterns",
        ),
        phrases=(
            "demoire", "demoire this photo", "moire removal", "i photographed a screen, fix the pattern",
            "demoireing", "get the screen stripes off this picture", "the monitor photo has stripes",
            "clean up this photo of a display", "moire spoils the photo", "the pattern of the screen is visible",
        ),
        held_nouns=(
            "moire stripes of a monitor", "display moire", "screen moire",
        ),
        held_phrases=(
            "photo of a monitor, make it moire free", "de-moire please", "the picture is full of moire",
            "no more moire",
        ),
    ),
}
REMOVE = (
    "remove the {}", "remove {}", "remove {} from this photo", "get rid of the {}", "take away the {}",
    "clear the {}", "delete the {} in this image", "eliminate the {}", "erase {}",
    "please remove the {} from my picture", "can you remove the {}?", "i would like to remove the {}",
    "clean the {} off the image", "fix the {}", "without {} please", "could you take the {} out of this photo",
    "the {} should go", "help me remove {}", "no {}", "reduce the {}", "i hate the {} in this shot",
    "there is {} in the image, remove it", "repair the {}", "correct the {} please", "the {} needs to be repaired",
    "my picture has {}, can you fix it", "restore this photo, it has {}", "improve this image by removing the {}",
    "cut down on the {}", "keep everything but the {}",
)
HELD_REMOVE = (
    "would you kindly remove the {} here", "this photo suffers from {}, please repair it", "get the {} out",
    "wipe out the {}", "i don't want any {} in it", "make the {} disappear", "strip the {} from the picture",
)
OPENERS = (
    "", "", "", "please ", "hi, ", "can you ", "could you please ", "i want you to ", "just ",
)
CLOSERS = (
    "", "", "", " please", " in this photo", ".", "!", " for me", ", thanks",
)
JOIN = (
    "{} and {}", "{} and then {}", "{}, then {}", "{}. {}", "first {}, then {}", "{}, also {}", "{} and also {}",
    "{} & {}",
)
HELD_JOIN = (
    "{} as well as {}", "{}; afterwards {}", "both {} and {}",
)
PAIR = (
    "remove {} and {}", "remove the {} and the {}", "get rid of {} and {}", "remove both {} and {}",
    "please remove the {} and {} from this photo", "take away the {}, and the {}", "clear {} and {}",
    "eliminate the {} plus the {}",
)
HELD_PAIR = (
    "wipe out the {} and {}", "the {} and the {} should disappear", "i don't want any {} or {}",
)
SUBJECTS = (
    "cat", "dog", "car", "tree", "house", "person", "man", "woman", "sky", "background", "boat", "table", "hat",
    "flower", "bird", "bridge", "logo", "watermark", "text", "people", "building", "horse", "river",
)
STYLES = (
    "watercolor painting", "cartoon", "pencil sketch", "oil painting", "poster", "comic", "pixel art", "3d render",
    "van gogh painting", "black and white photo", "postcard", "sticker", "anime drawing", "film noir still",
)
COLOURS = (
    "red", "blue", "green", "yellow", "purple", "pink", "orange", "sepia",
)
IRRELEVANT = (
    "", "hello", "hi", "thanks", "ok", "yes", "what is this?", "tell me a joke", "who are you",
    "describe the picture", "do nothing", "leave it as it is", "asdf", "test", "good morning", "what time is it",
    "write a poem", "how are you", "rotate the image", "crop the image", "flip it horizontally",
    "resize to 800 pixels", "zoom in", "make it smaller", "convert to png", "count the people", "translate this",
    "print it", "save the file", "upscale twice", "add a frame", "colorize this", "write a caption",
    "who took this?", "swap the faces of two cats", "12345", "lorem ipsum", "...", "?",
)
EDITS = (
    "make it a {style}", "turn this into a {style}", "make it look like a {style}",
    "change the {subject} to {colour}", "add a {subject}", "remove the {subject}",
    "replace the {subject} with a {other}", "paint the {subject} {colour}", "put a {subject} next to the {other}",
    "make the {subject} bigger", "delete the {subject}", "crop to the {subject}", "what is the {subject} doing",
    "is there a {subject} in the photo?", "please add a {colour} {subject}", "move the {subject} to the left",
    "get rid of the {subject}", "give the {subject} a {colour} {other}", "draw a {subject}", "apply a {colour} tint",
    "convert to a {style}",
)
HELD_EDITS = (
    "redraw everything as a {style}", "swap the {subject} for a {other}", "insert a {colour} {subject} on the right",
    "how many {other}s are near the {subject}", "recolour the {subject} in {colour}",
    "i would love a {style} of this",
)
HELD_IRRELEVANT = (
    "good evening", "goodbye", "what a nice day", "tilt the image by ten degrees", "qwerty", "who is this man",
    "export as jpeg", "sing a song", "set as wallpaper", "cut out the middle",
)
# fmt: on
