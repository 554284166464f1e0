"""Settings of the base model: the same for every family, because the family is recognised from the files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ..section import Section, knob

STARTER = "starter"


class BaseSection(Section):
    """The model that is taught."""

    path: str = knob(
        STARTER,
        "Base model",
        "What is taught: 'starter' (the small model that ships with the app), a diffusers folder, a "
        ".safetensors file of a whole model, or a hub id such as owner/name.",
        level="basic",
        is_path=True,
        is_hub_id=True,
    )
    family: Literal["auto", "sd1", "sd2", "sdxl", "sd3"] = knob(
        "auto",
        "Family",
        "Which Stable Diffusion the model is of: 1, 2, XL or 3. 'auto' tells it by the names and shapes in "
        "its files. Say it yourself for a model that is refused because it does not say what it is: a folder "
        "without model_index.json or of an unusual pipeline, or SDXL with layers taken out.",
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = knob(
        "auto",
        "Prediction type",
        "What the model was trained to predict: noise (epsilon), velocity (v_prediction) or the image "
        "(sample). "
        "'auto' reads it from the model; a wrong choice trains to grey mud.",
    )
    quantize: Literal["auto", "plain", "int8", "nf4"] = knob(
        "auto",
        "Frozen base kept in",
        "Keeps the Linear layers that are not trained in fewer bits: int8 takes half of their memory and is "
        "hardly less exact, nf4 a little over a quarter and a little less so. They are a third of Stable "
        "Diffusion 1 and most of SDXL. Steps are slower; the exported file fits the base model as it is.",
    )
    t5: Literal["auto", "plain", "int8", "nf4", "off"] = knob(
        "auto",
        "T5",
        "Stable Diffusion 3 alone: its third and largest text encoder, which reads captions and prompts too. "
        "It takes 9 GB; int8 keeps it in half of that and nf4 in a quarter, hardly less exact. off leaves it "
        "out, and long prompts are followed less closely. 'auto' takes what fits the card.",
    )
    t5_words: str = knob(
        "",
        "T5's words",
        "Stable Diffusion 3 from a single file alone: the folder with T5's tokenizer.json, such as "
        "tokenizer_3 of a downloaded model, for no single file has it. Empty looks among what was "
        "downloaded before.",
        is_path=True,
    )
    clip_skip: int = knob(
        0,
        "CLIP skip",
        "How many of the text encoder's last layers are left out. 0 for most models; 1 for those trained "
        "that way (called 'clip skip 2' elsewhere). A wrong value weakens prompts. SDXL leaves out one at "
        "least: 0 and 1 are the same there.",
        ge=0,
        le=11,
    )

    @field_validator("t5", mode="before")
    @classmethod
    def _once_a_switch(cls, t5: Any) -> Any:
        """Until schema 2 it was used or not."""
        return {True: "auto", False: "off"}[t5] if isinstance(t5, bool) else t5
