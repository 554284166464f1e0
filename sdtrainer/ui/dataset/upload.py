"""Pictures from the browser's disk: a folder with its subfolders, single pictures, a ZIP or a Parquet file.

What is uploaded is trained on. The page's own uploads would not do: they forget subfolders (gradio 6.31,
route_utils.py: Path(filename).name), and stay shut once a wrong file was dropped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from ...exchange import bringing
from ...exchange.archives import WANTED
from ...exchange.pieces import free
from ...section import UserError
from .. import words
from ..desk import Desk
from ..listen import Given
from ..sections import Sections

MAX_UPLOAD_GB = 2
PACKED = (".zip", ".parquet")
LOOSE = "my-pictures"
"""The folder for pictures that were in none."""
ZONE = """<div class="drop"><p>Drop a folder, pictures, or a ZIP or Parquet file here</p><div class="choices">
<label class="small">Choose a folder<input type="file" webkitdirectory multiple></label>
<label class="small">Choose files<input type="file" multiple accept="ACCEPTED"></label>
<button type="button" class="small" hidden>Stop</button></div><p class="quiet" role="status">SAID</p></div>"""
SENDING = """
let request = null, isBusy = false, isStopped = false;
const find = what => element.querySelector(what);
const say = text => { find('.drop [role=status]').textContent = text; };
const size = bytes => bytes < 2 ** 30 ? `${Math.ceil(bytes / 2 ** 20)} MB`
  : `${(bytes / 2 ** 30).toFixed(1)} GB`;
const time = seconds => seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`;
const all = async entry => {
  if (entry.isFile) return [[entry.fullPath.replace(/^\\//, ''),
    await new Promise((done, fail) => entry.file(done, fail))]];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const part = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!part.length) return found;
    for (const inner of part) found.push(...await all(inner));
  }
};
const post = (files, tell) => new Promise((done, fail) => {
  const form = new FormData();
  for (const [, file] of files) form.append('files', file, file.name);
  request = new XMLHttpRequest();
  request.upload.onprogress = event => tell(event.loaded);
  request.onload = () => request.status === 200 ? done(JSON.parse(request.responseText))
    : fail(Error(`the app refused it (${request.status}); look whether its disk is full`));
  request.onerror = () => fail(Error('the app does not answer'));
  request.onabort = () => fail(Error('you stopped it'));
  request.open('POST', 'gradio_api/upload');
  request.send(form);
});
const isHidden = path => path.split('/').some(part => part.startsWith('.'));
const isKnown = path => ENDINGS.some(end => path.toLowerCase().endsWith(end));
const send = async files => {
  const seen = files.filter(([path]) => !isHidden(path)), known = seen.filter(([path]) => isKnown(path));
  const large = known.find(([, file]) => file.size > MOST * 2 ** 30);
  if (large) throw Error(`${large[0]} is larger than MOST GB; give its path under Import and export instead`);
  const whole = known.reduce((sum, [, file]) => sum + file.size, 0), began = Date.now(), sent = [];
  let before = 0;
  for (let start = 0; start < known.length; start += 20) {
    if (isStopped) throw Error('you stopped it');
    const part = known.slice(start, start + 20);
    const places = await post(part, loaded => {
      const done = Math.min(before + loaded, whole), seconds = (Date.now() - began) / 1000;
      const left = seconds > 2 ? `, about ${time(seconds / done * (whole - done))} left` : '';
      say(`Uploading, ${size(done)} of ${size(whole)}${left}`);
    });
    places.forEach((place, index) => sent.push([part[index][0], place]));
    before += part.reduce((sum, [, file]) => sum + file.size, 0);
  }
  say('Uploaded; now it is looked at');
  trigger('click', {act: 'uploaded', files: sent, others: seen.length - known.length});
};
const take = async find_files => {
  if (isBusy) { say('Wait for this upload, or stop it'); return; }
  isBusy = true; isStopped = false;
  find('.drop button').hidden = false;
  say('Reading what you dropped');
  try { await send(await find_files()); }
  catch (error) { say(`Nothing is uploaded: ${error.message}.`); }
  isBusy = false;
  find('.drop button').hidden = true;
};
const over = isOver => find('.drop').classList.toggle('over', isOver);
element.addEventListener('click', event => {
  if (!event.target.closest('.drop button')) return;
  isStopped = true;
  request?.abort();
});
element.addEventListener('dragover', event => { event.preventDefault(); over(true); });
element.addEventListener('dragleave', event => { if (!element.contains(event.relatedTarget)) over(false); });
element.addEventListener('drop', event => {
  event.preventDefault(); event.stopPropagation(); over(false);
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
  if (entries.length) take(async () => (await Promise.all(entries.map(all))).flat());
  else say('That is no file of this computer: save it first, then drop it.');
});
element.addEventListener('change', event => {
  const files = [...event.target.files || []].map(file => [file.webkitRelativePath || file.name, file]);
  event.target.value = '';
  if (files.length) take(async () => files);
});""".replace("ENDINGS", json.dumps([*WANTED, ".zip"])).replace("MOST", str(MAX_UPLOAD_GB))
"""Uploads what is known, and reports [path in the folder, place on the server] of each."""


class Upload:
    """A folder is trained on as it is; what is packed, or has another trainer's config, is imported."""

    def __init__(self, desk: Desk, sections: Sections, importing: str) -> None:
        """`importing` is the part of the tab that shows how far an import is."""
        self.desk, self.sections, self.importing = desk, sections, importing
        self._num_taken = 0

    def build(self) -> None:
        self.drop = gr.HTML(_zone(), js_on_load=SENDING, elem_id="drop")
        self.name = gr.Textbox(
            label="Name of the new folder",
            info=f"Leave it empty to keep the name that it has; single pictures go to '{LOOSE}' then.",
            elem_id="upload-name",
            max_length=80,
        )

    def wire(self, refresh: Any) -> None:
        shows = [self.drop, self.sections.chosen]
        refresh(self.desk.on(self.drop.click, self._take, {self.name}, shows, clicks=True))

    def _take(self, given: Given) -> dict[Any, Any]:
        """Take what was uploaded, and say beside the place where it was dropped what became of it."""
        try:
            said, is_imported = self.take(given), "import" in self.desk.errands.doing
        except UserError as error:
            said, is_imported = str(error), False
        self._num_taken += 1
        zone = f"{_zone(said)}<!-- {self._num_taken} -->"  # the same again would leave what was said there
        return {self.drop: zone} | (self.sections.show(self.importing) if is_imported else {})

    def take(self, given: Given) -> str:
        """Take what was uploaded into the workspace, and train on it; returns what there is to say.

        Raises:
            UserError: it holds no pictures, or what is packed does not come alone.
        """
        files = received(given.clicked.get("files"))
        others = _others(given.clicked.get("others"))
        if not files:
            hint = "PNG, JPEG and WebP can be read; save the HEIC pictures of a phone as JPEG first."
            raise UserError(f"There are no pictures in it.{others}", hint)
        top = _top(files)
        staged = free(self.desk.workspace.cache / bringing.UPLOADED / (top or LOOSE))
        for path, place in files.items():
            inner = staged / (path.relative_to(top) if top else path)
            inner.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(place, inner)
        try:
            return self._use(staged, top, bringing.plain_name(given[self.name] or "")) + others
        except UserError:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def _use(self, staged: Path, top: str, name: str) -> str:
        """Import a folder that was uploaded, or train on it."""
        if source := _for_import(staged):
            self.desk.begin("import", {"source": str(source), "name": name}, self.train_on)
            return f"{source.name} is uploaded; below stands how far its import is."
        uploads, num_files = self.desk.workspace.uploads, sum(path.is_file() for path in staged.rglob("*"))
        is_loose = not any(path.is_dir() for path in staged.iterdir()) and not top
        folder = uploads / (name or LOOSE) if is_loose else free(uploads / (name or top or LOOSE))
        is_there = folder.exists()
        _move_into(staged, folder)
        self.train_on({"folder": str(folder)})
        done = "added" if is_there else "copied"
        return f"{words.count(num_files, 'file')} {done} to {folder}; you train on that folder now."

    def train_on(self, answer: Mapping[str, Any]) -> None:
        self.desk.project.lay({"data.folder": answer["folder"]}, "", "import")
        self.desk.look_again()


def received(said: Any) -> Mapping[PurePosixPath, Path]:
    """Return what the browser uploaded, by its path in what was dropped. Raises UserError for anything that
    it could not have uploaded.
    """
    home, files = Path(get_upload_folder()).resolve(), {}
    for pair in said if isinstance(said, list) else []:
        name, place = pair if isinstance(pair, list) and len(pair) == 2 else ("", "")
        path, there = PurePosixPath(str(name)), Path(str(place)).resolve()
        is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in str(name)
        if not (path.parts and is_inside and there.is_relative_to(home) and there.is_file()):
            what = f"The upload holds '{str(name)[:80]}', which is no file of a folder."
            raise UserError(what, "Upload it anew.")
        is_wanted = path.suffix.lower() in (*WANTED, ".zip")
        if is_wanted and not any(part.startswith(".") for part in path.parts):
            files[path] = there
    return files


def _top(files: Iterable[PurePosixPath]) -> str:
    """Return the one folder that holds all files, empty if there is none."""
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in files}
    return tops.pop() if len(tops) == 1 else ""


def _for_import(staged: Path) -> Path | None:
    """Return what is to be imported of an upload, if it is not to be used as it is. Raises UserError."""
    inside = list(staged.iterdir())
    archives = [path for path in inside if path.suffix.lower() == ".zip"]
    if archives and len(inside) > 1:
        raise UserError(f"{archives[0].name} comes with other files.", "Drop it alone: it is unpacked then.")
    if len(inside) == 1 and inside[0].is_file() and inside[0].suffix.lower() in PACKED:
        return inside[0]
    return staged if bringing.is_for_import(staged) else None


def _move_into(staged: Path, folder: Path) -> None:
    """Move what was uploaded; a file whose name is taken gets another, the same for picture and caption."""
    folder.mkdir(parents=True, exist_ok=True)
    there, new = ({path.stem.casefold() for path in place.iterdir()} for place in (folder, staged))
    for path in list(staged.iterdir()):
        stem, number = path.stem, 1
        while stem.casefold() in (there | new if number > 1 else there):
            number += 1
            stem = f"{path.stem}-{number}"
        path.rename(folder / f"{stem}{path.suffix}")
    staged.rmdir()


def _others(said: Any) -> str:
    num = said if isinstance(said, int) else 0
    return f" {words.count(num, 'other file')} left out." if num else ""


def _zone(said: str = "") -> str:
    return ZONE.replace("ACCEPTED", ",".join((*WANTED, ".zip"))).replace("SAID", words.safe(said))
