"""Sets of pictures in and out: a ZIP archive, a folder with its subfolders, other trainers' layouts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from ...chores import Answer
from ...data.images import EXTENSIONS
from ...exchange.archives import WANTED
from ...exchange.bringing import UPLOADED
from ...exchange.pieces import free
from ...section import UserError
from .. import words
from ..chore import ChoreCard
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..words import tag

INTO = "Copy pictures into the workspace, with captions, repeats and masks. What you import stays as it is."
OUT = "Write the pictures above for another program. What its layout cannot say is listed."
DROP = """<div class="drop"><p>Drop a folder here, with all that is in it</p>
<label class="small">Choose a folder
<input type="file" webkitdirectory multiple aria-label="Folder to upload"></label>
<p class="quiet" role="status"></p></div>"""
DROPPING = """
const say = text => {
  const line = element.querySelector('.drop [role=status]');
  if (line) line.textContent = text;
};
const all = async entry => {
  if (entry.isFile) return [await new Promise((done, fail) => entry.file(
    file => done([entry.fullPath.replace(/^\\//, ''), file]), fail))];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const part = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!part.length) return found;
    for (const inner of part) found.push(...await all(inner));
  }
};
const send = async files => {
  const sent = [], known = files.filter(([path]) => ENDINGS.some(end => path.toLowerCase().endsWith(end)));
  if (!known.length) { say('There are no pictures in it.'); return; }
  for (let start = 0; start < known.length; start += 20) {
    const part = known.slice(start, start + 20), form = new FormData();
    for (const [, file] of part) form.append('files', file, file.name);
    const answer = await fetch('gradio_api/upload', {method: 'POST', body: form});
    if (!answer.ok) { say('The upload was refused.'); return; }
    (await answer.json()).forEach((place, index) => sent.push([part[index][0], place]));
    say(`${sent.length} of ${known.length} files`);
  }
  say(`${sent.length} files are uploaded; now they are looked at.`);
  trigger('click', {act: 'uploaded', files: sent});
};
const safely = work => work.catch(error => say(`The upload broke off (${error.message}).`));
element.addEventListener('dragover', event => { if (event.target.closest('.drop')) event.preventDefault(); });
element.addEventListener('drop', event => {
  if (!event.target.closest('.drop')) return;
  event.preventDefault(); event.stopPropagation();
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
  safely(Promise.all(entries.map(all)).then(found => send(found.flat())));
});
element.addEventListener('change', event => {
  const files = [...event.target.files || []].map(file => [file.webkitRelativePath || file.name, file]);
  safely(send(files)); event.target.value = '';
});""".replace("ENDINGS", repr(list(WANTED)))
"""Uploads a folder file by file and reports [path in the folder, place on the server] of each. The page's own
uploads forget subfolders (gradio 6.31, route_utils.py: Path(filename).name).
"""


class Exchange:
    """Import and export are chores; an upload is taken into a folder of its own first."""

    title = "Import and export"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.into = ChoreCard(desk, "import", "Import", found=self._imported)
        self.out = ChoreCard(desk, "export", "Export", fixed=("folder",))
        self._drops = 0

    def build(self) -> None:
        gr.HTML(tag("h3", "Import") + tag("p", INTO, "quiet"))
        with gr.Row(equal_height=False):
            with gr.Column(min_width=260):
                self.drop = gr.HTML(DROP, js_on_load=DROPPING, elem_id="drop-folder")
            with gr.Column(min_width=260):
                self.archive = gr.File(
                    label="Or a ZIP archive or Parquet file",
                    file_types=[".zip", ".parquet"],
                    height=140,
                    elem_id="drop-zip",
                )
        self.into.build()
        self.use = gr.Button("Train on these pictures", size="sm", visible=False, elem_id="use-imported")
        gr.HTML(tag("h3", "Export") + tag("p", words.safe(OUT), "quiet"))
        self.out.build()

    @property
    def uploaded(self) -> Path:
        return self.desk.workspace.cache / UPLOADED

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
        source = self.into.fields["source"].widget
        on(self.archive.upload, self._unpack, {self.archive}, [self.archive, source, *self.into.shows])
        refresh(on(self.drop.click, self._take, (), [self.drop, *self.shows], clicks=True))
        refresh(on(self.use.click, self._use, (), self.shows))
        self.into.wire()
        self.out.wire(lambda given: {"folder": self._folder()})

    def _unpack(self, given: Given) -> dict[Any, Any]:
        """Import an archive as soon as it is there."""
        uploaded = Path(given[self.archive])
        place = free(self.uploaded / uploaded.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(uploaded, place)
        self.desk.begin("import", {"source": str(place), "name": ""})
        return {self.archive: None} | self.into.show()

    def _take(self, given: Given) -> dict[Any, Any]:
        """Take an uploaded folder into the workspace, and train on it; one of Parquet files is imported."""
        files = _uploaded(given.clicked.get("files"))
        tops = {path.parts[0] for path in files if len(path.parts) > 1}
        name = tops.pop() if len(tops) == 1 and all(len(path.parts) > 1 for path in files) else "uploaded"
        is_packed = {path.suffix.lower() for path in files} & {*EXTENSIONS, ".parquet"} == {".parquet"}
        target = free((self.uploaded if is_packed else self.desk.workspace.uploads) / name)
        for path, place in files.items():
            inner = path.relative_to(name) if path.parts[0] == name and len(path.parts) > 1 else path
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(place, target / inner)
        if is_packed:
            self.desk.begin("import", {"source": str(target)})
        else:
            self._train_on(target)
            copied = words.count(len(files), "file")
            gr.Info(f"{copied} copied to {target}; you train on them now.", duration=6)
        self._drops += 1
        return {self.drop: f"{DROP}<!-- {self._drops} -->"}  # the same again would leave what was said there

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


def _uploaded(said: Any) -> Mapping[PurePosixPath, Path]:
    """Return what the browser uploaded, by its path in the dropped folder. Raises UserError for anything that
    it could not have uploaded.
    """
    received, files = Path(get_upload_folder()).resolve(), {}
    for pair in said if isinstance(said, list) else []:
        name, place = pair if isinstance(pair, list) and len(pair) == 2 else ("", "")
        path, there = PurePosixPath(str(name)), Path(str(place)).resolve()
        is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in str(name)
        if not (path.parts and is_inside and there.is_relative_to(received) and there.is_file()):
            what = f"The upload holds '{str(name)[:80]}', which is no file of a folder."
            raise UserError(what, "Upload it anew.")
        if path.suffix.lower() in WANTED and not any(part.startswith(".") for part in path.parts):
            files[path] = there
    if not files:
        raise UserError("There are no pictures in it.", "Choose a folder with PNG, JPEG or WebP files.")
    return files
