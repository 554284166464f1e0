"""Sets of pictures in and out: a ZIP archive, a folder with its subfolders, other trainers' layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ...chores import Answer
from ...section import UserError
from .. import words
from ..chore import ChoreCard
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..words import tag

INTO = (
    "Copy pictures into the workspace, with captions, repeats and masks; yours stay as they are. To drop "
    "them or choose them instead, open 'Upload' above."
)
OUT = "Write the pictures above for another program. What its layout cannot say is listed."


class Exchange:
    """Both are chores."""

    title = "Import and export"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.into = ChoreCard(desk, "import", "Import", found=self._imported)
        self.out = ChoreCard(desk, "export", "Export", fixed=("folder",))

    def build(self) -> None:
        gr.HTML(tag("h3", "Import") + tag("p", words.safe(INTO), "quiet"))
        self.into.build()
        with gr.Row(elem_classes="controls"):
            self.use = gr.Button("Train on these pictures", size="sm", visible=False, elem_id="use-imported")
        gr.HTML(tag("h3", "Export") + tag("p", words.safe(OUT), "quiet"))
        self.out.build()

    @property
    def states(self) -> set[Any]:
        return set()

    @property
    def shows(self) -> list[Any]:
        return [*self.into.shows, *self.out.shows, self.use]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        return self.into.show() | self.out.show() | {self.use: gr.update(visible=self._is_new(outlook))}

    def wire(self, refresh: Any) -> None:
        on = self.desk.on
        refresh(on(self.use.click, self._use, (), self.shows))
        self.into.wire()
        self.out.wire(lambda given: {"folder": self._folder()})

    def _use(self, given: Given) -> dict[Any, Any]:
        answer = self.into.answer
        if answer is None:
            raise UserError("There is nothing imported.", "Import pictures first.")
        self._train_on(Path(answer["folder"]))
        return {self.use: gr.update(visible=False)}

    def _train_on(self, folder: Path) -> None:
        self.desk.project.lay({"data.folder": str(folder)}, "", "import")
        self.desk.look_again()

    def _folder(self) -> str:
        outlook = self.desk.look()
        if outlook.census is None:
            raise outlook.error or UserError("There are no pictures.", "Choose a folder.")
        return str(outlook.census.folder)

    def _is_new(self, outlook: Outlook) -> bool:
        answer = self.into.answer
        data = outlook.values.get("data", {})
        return answer is not None and data.get("folder") != answer["folder"]

    def _imported(self, answer: Answer) -> str:
        notes = tag("ul", words.items(words.safe(note) for note in answer["notes"][:50]), "problems")
        told = f"{words.count(answer['pictures'], 'picture')} imported into {answer['folder']}."
        return tag("p", words.safe(told)) + (notes if answer["notes"] else "")
