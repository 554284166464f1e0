"""The settings of the images and their captions. Owns `DataSection`; reads no file."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationInfo, field_validator

from ..section import Section, knob
from . import templates

CaptionSource = Literal["auto", "sidecar", "metadata", "file name", "folder name", "none"]
Switch = Literal["auto", "on", "off"]


class DataSection(Section):
    """Your images and the words that go with them. The images themselves are never changed."""

    folder: str = knob(
        "",
        "Image folder",
        "The folder with your training images; 10 to 30 good ones teach a subject, more teach a style, and"
        " too few make the model copy them.",
        level="basic",
        is_path=True,
    )
    trigger: str = knob(
        "",
        "Trigger word",
        "The word that will call up what you teach: it replaces {trigger} in a caption, else stands in"
        " front of it; choose a rare one, because a common word brings its old meaning along.",
        level="basic",
        max_length=200,
    )
    caption_from: CaptionSource = knob(
        "auto",
        "Captions from",
        "Where captions come from: auto takes text files beside the images, then a table metadata.jsonl,"
        " .csv or .parquet, then folder or file names; with none only the trigger word is learned.",
    )
    prefix: str = knob(
        "",
        "Caption prefix",
        "Text in front of every caption, such as 'a photo of'; whatever stands in every caption is learned"
        " as part of the trigger.",
        max_length=1000,
    )
    suffix: str = knob(
        "",
        "Caption suffix",
        "Text after every caption; a long one pushes the caption towards the end of what the model reads.",
        max_length=1000,
    )
    templates: list[str] = knob(
        [],
        "Caption templates",
        "Sentences around what is taught, drawn at random: [trigger] stands for the trigger"
        " word, [caption] for the image's own caption, subject or style alone for a built-in list; empty"
        " leaves captions as they are.",
        lines=3,
    )
    shuffle_tags: bool = knob(
        False,
        "Shuffle tags",
        "Put the tags of a caption in a new order each time, so that no tag gains by standing first; leave"
        " it off for captions that are sentences.",
    )
    keep_tags: int = knob(
        0,
        "Keep first tags",
        "How many tags at the start stay in place and are never dropped; too many and shuffling has no"
        " effect.",
        unit="tags",
        ge=0,
        le=100,
    )
    tag_separator: str = knob(
        ",",
        "Tag separator",
        "The character between two tags of a caption; with a wrong one the whole caption counts as one tag.",
        min_length=1,
        max_length=10,
    )
    tag_dropout: float = knob(
        0.0,
        "Tag dropout",
        "The part of the tags left out each time, so that the model does not lean on any of them; above 0.3"
        " the caption no longer describes the image.",
        ge=0,
        le=1,
    )
    caption_dropout: float = knob(
        0.0,
        "Caption dropout",
        "The part of the time an image is shown without any caption; 0.05 to 0.1 keeps styles strong"
        " without words, and more makes the trigger word weak.",
        ge=0,
        le=1,
    )
    flip: bool = knob(
        False,
        "Random mirror",
        "Mirror half of the images left to right, which doubles a small set; leave it off for faces with a"
        " parting, for text and for logos.",
        level="basic",
    )
    crop: Literal["center", "random"] = knob(
        "center",
        "Crop",
        "Which part is kept where an image does not fit its bucket: the middle, or another part each time,"
        " which varies more but cannot use cached latents.",
    )
    repeats: int = knob(
        1,
        "Repeats",
        "How often every image is shown per epoch; more makes an epoch longer and, for the same number of"
        " epochs, the training stronger.",
        unit="times",
        level="basic",
        ge=1,
        le=10000,
    )
    background: str = knob(
        "white",
        "Background",
        "The colour put behind transparent images, as a name or #rrggbb; the model learns it as if it were"
        " in the picture.",
        max_length=40,
    )
    validation_folder: str = knob(
        "",
        "Validation folder",
        "Images that are never trained on, used to see whether the model still learns or only memorises;"
        " empty for none.",
        is_path=True,
    )
    validation_split: float = knob(
        0.0,
        "Validation part",
        "The part of the training images set aside for validation when there is no validation folder; too"
        " much leaves too little to learn from.",
        ge=0,
        le=0.5,
    )
    cache_latents: Switch = knob(
        "auto",
        "Cache latents",
        "Encode every image once and keep the result on disk, which saves memory and time; it cannot be"
        " used with random crops.",
    )
    cache_text: Switch = knob(
        "auto",
        "Cache text",
        "Encode every caption once and keep the result on disk, which saves memory; it cannot be used with"
        " shuffled or dropped tags, or when the text encoder learns.",
    )
    bucket_step: int = knob(
        0,
        "Bucket step",
        "Sides of buckets are multiples of this; smaller crops less of each image but spreads them over"
        " more buckets, so fewer batches are full; 0 chooses by resolution.",
        unit="px",
        ge=0,
        le=256,
        multiple_of=8,
    )
    bucket_min: int = knob(
        0,
        "Shortest side",
        "The shortest side a bucket may have; a high value cuts more off panoramas, a low one trains on"
        " thin strips; 0 is half the resolution.",
        unit="px",
        ge=0,
        le=2048,
        multiple_of=8,
    )
    bucket_max: int = knob(
        0,
        "Longest side",
        "The longest side a bucket may have; below twice the resolution wide images lose detail; 0 is twice"
        " the resolution, at most 2048.",
        unit="px",
        ge=0,
        le=2048,
        multiple_of=8,
    )
    upscale: bool = knob(
        True,
        "Enlarge small images",
        "Enlarge images that are smaller than their bucket; off, they train at their own size, which is"
        " sharper but teaches less detail.",
    )

    masks: Literal["auto", "alpha", "off"] = knob(
        "auto",
        "Masks",
        "Teach only what a mask shows white: auto takes masks made here, files named like"
        " photo-masklabel.png, and a folder named masks beside the pictures; alpha also takes the"
        " transparency of the pictures.",
    )
    mask_folder: str = knob(
        "",
        "Mask folder",
        "A folder of masks that lies elsewhere, each named like its picture; empty for none.",
        is_path=True,
    )
    unmasked_weight: float = knob(
        0.1,
        "Weight outside the mask",
        "How much the rest of a masked picture still counts; 0 ignores it, and the model may then draw"
        " anything there, 1 is as if there were no mask.",
        ge=0,
        le=1,
    )
    even_masks: bool = knob(
        False,
        "Even out masks",
        "Let a picture with a small mask count as much as one with a large mask; tiny masks then weigh"
        " heavily at every place.",
    )

    @field_validator("background")
    @classmethod
    def _is_colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getrgb(value)
        except ValueError as error:
            raise ValueError(
                f"'{value}' is no colour; write a name such as white, or #rrggbb such as #808080"
            ) from error
        return value

    @field_validator("bucket_max")
    @classmethod
    def _is_above_min(cls, value: int, info: ValidationInfo) -> int:
        shortest = info.data.get("bucket_min", 0)
        if value and value < shortest:
            raise ValueError(
                f"the longest side ({value}) is below the shortest ({shortest}); raise it, or write 0"
            )
        return value


def why_no_latent_cache(section: DataSection) -> str:
    """Say why these settings rule out cached latents; empty if they do not."""
    return "random crops need the image itself each time" if section.crop == "random" else ""


def why_no_text_cache(section: DataSection) -> str:
    """Say why these settings rule out cached captions; empty if they do not."""
    if section.shuffle_tags:
        return "shuffled tags make another caption each time"
    if section.tag_dropout:
        return "dropped tags make another caption each time"
    several = len(templates.lines(section.templates)) > 1
    return "several templates make another caption each time" if several else ""
