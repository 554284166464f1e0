"""Parts of a tab of which one is seen at a time; a row of words above them chooses.

The browser does it alone: all parts are there, and a style hides those whose word is not chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr


class Sections:
    """`name` is the row's; `parts` says how each is built, by its title."""

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, parts: Mapping[str, Callable[[], None]]) -> None:
        titles = [*parts]
        style = "".join(self._hidden(title) for title in titles)
        gr.HTML(f"<style>{style}</style>", elem_classes="style-only")
        with gr.Column(elem_id=f"{self.name}-all", min_width=0):
            self.chosen = gr.Radio(
                titles,
                value=titles[0],
                label="Part",
                show_label=False,
                container=False,
                elem_id=self.name,
                interactive=True,
                elem_classes="sections",
            )
            for title, build in parts.items():
                with gr.Column(elem_id=f"part-{slug(title)}", min_width=0):
                    build()

    def show(self, title: str) -> dict[Any, Any]:
        """Choose a part."""
        return {self.chosen: title}

    def _hidden(self, title: str) -> str:
        chosen = f'#{self.name} input[value="{title}"]:checked'
        return f"#{self.name}-all:not(:has({chosen})) #part-{slug(title)}{{display:none!important}}"


def veiled(title: str) -> str:
    """Return the selector of a part's word and of the part, to hide both."""
    return f'.sections label:has(input[value="{title}"]), #part-{slug(title)}'


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")
