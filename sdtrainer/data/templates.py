"""Caption templates: the built-in lines for a subject and for a style, and how a line is filled in. Pure."""

from __future__ import annotations

from collections.abc import Sequence

TRIGGER, CAPTION = "[trigger]", "[caption]"

SUBJECT = (
    "a photo of [trigger]",
    "a picture with [trigger] in it",
    "[trigger]",
    "[trigger], seen up close",
    "[trigger] from some distance",
    "a snapshot showing [trigger]",
    "here is [trigger]",
    "a clear photo of one [trigger]",
    "[trigger] in the middle of the picture",
    "a small [trigger]",
    "a big [trigger]",
    "my own [trigger]",
    "a dark photo of [trigger]",
    "[trigger] in bright light",
    "a photo of [trigger] taken today",
    "someone's photo of that [trigger]",
)
STYLE = (
    "a picture in the style of [trigger]",
    "[trigger] style",
    "an image made in [trigger] style",
    "drawn in the manner of [trigger]",
    "a work of art, [trigger] style",
    "[trigger] style, seen up close",
    "a small work in [trigger] style",
    "a large work in [trigger] style",
    "a dark picture in the style of [trigger]",
    "a bright picture in the style of [trigger]",
    "a detail, in [trigger] style",
    "something shown in the style of [trigger]",
    "a fine example of [trigger] style",
    "a scene, [trigger] style",
)
BUILT_IN = {"subject": SUBJECT, "style": STYLE}


def lines(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the lines meant by `data.templates`: 'subject' and 'style' written out, empty ones left out."""
    written = (template.strip() for template in templates)
    return tuple(line for template in written if template for line in BUILT_IN.get(template, (template,)))


def fill_in(line: str, caption: str, trigger: str) -> str:
    """Return the line with the caption and the trigger word in their places.

    Where there is no caption, the comma before its place goes too.
    """
    text = line.replace(TRIGGER, trigger)
    return text.replace(CAPTION, caption) if caption else text.replace(CAPTION, "").strip(" ,;")
