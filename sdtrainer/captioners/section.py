"""The settings of captioning."""

from __future__ import annotations

from typing import Literal

from ..section import Section, knob
from . import As, Name

Mode = Literal["replace", "after", "before"]
Detail = Literal["short", "medium", "long"]


class Settings(Section):
    folder: str = knob(
        "", "Image folder", "The folder with your pictures. Nothing in it is changed.", level="basic",
        is_path=True,
    )  # fmt: skip
    captioner: Name = knob(
        "florence2", "Captioner",
        "What writes the captions. Florence-2 suits most photos, the WD tagger anime, and file names are "
        "enough where they describe the pictures.",
        level="basic",
    )  # fmt: skip
    detail: Detail = knob(
        "medium", "Length",
        "How much it says: a short sentence, a full one, or a few. Stable Diffusion 1 and 2 read about 50 "
        "words.",
        level="basic",
    )  # fmt: skip
    instruction: str = knob(
        "", "Instruction",
        "What to tell a model that follows instructions, such as: describe the style, not the subject. For "
        "BLIP it is the beginning of every caption, such as: a photo of.",
        level="basic", lines=2,
    )  # fmt: skip
    threshold: float = knob(
        0.35, "Least certainty", "How sure the tagger must be of a tag. Lower gives more tags, and more "
        "wrong ones.", level="basic", gt=0, lt=1,
    )  # fmt: skip
    character_threshold: float = knob(
        0.85, "Least certainty of characters", "The same for the names of known characters.", gt=0, lt=1
    )
    blacklist: list[str] = knob(
        [], "Tags to leave out", "Tags that are never written, such as: solo.", lines=3
    )
    underscores: bool = knob(
        False, "Keep underscores", "Write long_hair rather than long hair. Most models know both."
    )
    template: str = knob(
        "{caption}",
        "Caption as",
        "How it is put together, such as: a photo of {trigger}, {caption}. {caption} is what was seen, "
        "{trigger} your trigger word, {name} and {folder} are the words of the file's name and its folder's.",
    )  # fmt: skip
    trigger: str = knob("", "Trigger word", "What {trigger} stands for.")
    overwrite: bool = knob(
        False, "Caption all",
        "Write captions also for pictures that have one. Without this they are left alone.",
        level="basic",
    )  # fmt: skip
    mode: Mode = knob(
        "replace", "Captions that are there",
        "Replace them, or keep them and put the new text after or before. What a caption has already is "
        "not repeated.",
        level="basic",
    )  # fmt: skip
    pictures: list[str] = knob([], "Only these pictures", "Paths inside the folder. Empty: all.", lines=3)
    dry_run: bool = knob(False, "Only try", "Show the captions and keep none of them.")
    write_files: bool = knob(
        False, "Write text files",
        "Also write the captions as .txt files beside the pictures. Without this they stay in the workspace.",
    )  # fmt: skip
    model: str = knob(
        "", "Other model",
        "A folder on this machine, or an id of the Hugging Face hub, of the same kind of model. Empty: the "
        "usual one.",
        is_path=True, is_hub_id=True,
    )  # fmt: skip
    precision: Literal["auto", As] = knob(
        "auto", "Precision",
        "auto takes 16 bits on the card, 8 if only that fits, and the processor if nothing does.",
    )  # fmt: skip
    batch_size: int = knob(
        0,
        "Pictures at once",
        "More is faster on a card and takes more of its memory. 0 is auto.",
        ge=0,
        le=64,
    )
    max_tokens: int = knob(
        75, "Longest caption",
        "In tokens, of which a word has about 1.3. Stable Diffusion 1 and 2 read 75 at once.", ge=5, le=300,
        unit="tokens",
    )  # fmt: skip
