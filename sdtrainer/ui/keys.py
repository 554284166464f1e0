"""The keyboard, as a script in the page's head: keys of the tabs and the caption view, a list of all keys,
and pasting into text fields.

gradio's text fields tell of pressed letters only (6.31); pasting and deleting are passed on to them as such.
A path that is typed is read when its field is left, a pasted one at once: it is whole. Files that are dragged
over the page open the place for them, and do not replace the page if they are dropped beside it.
"""

from .words import tag

KEYS = (
    ("1 - 7", "Go to a tab"),
    ("Click", "Pictures: look at one large; with Ctrl select it, with Shift all up to it"),
    ("Left, right", "Large picture: the one before, the next one"),
    ("x", "Large class image: select it"),
    ("Enter", "Large picture: write its caption"),
    ("Ctrl + Enter", "In the caption: go to the next picture, with Shift to the one before"),
    ("Esc", "Leave the caption; go back to all pictures"),
    ("Ctrl + Z", "Undo the last change to captions, with Shift redo it (not in a text field)"),
    ("?", "Show or hide this list"),
)
_LIST = (
    tag("h2", "Keys")
    + tag("dl", "".join(tag("dt", tag("kbd", key)) + tag("dd", does) for key, does in KEYS))
    + tag("form", tag("button", "Close", "small"), method="dialog")
)
HELP = tag("button", "?", "small", type="button", id="help", title="Keys", aria_label="Show the keys")
"""The button that shows the list."""

HEAD = (
    """<script>
const showKeys = () => {
  let list = document.querySelector('#keys');
  if (!list) {
    list = document.createElement('dialog');
    list.id = 'keys';
    list.setAttribute('aria-label', 'Keys');
    list.innerHTML = `"""
    + _LIST
    + """`;
    (document.querySelector('.gradio-container') ?? document.body).append(list);
  }
  list.open ? list.close() : list.showModal();
};
document.addEventListener('click', event => { if (event.target.closest('#help')) showKeys(); });
document.addEventListener('keydown', event => {
  const isWriting = ['INPUT', 'TEXTAREA', 'SELECT'].includes(document.activeElement?.tagName);
  if (isWriting || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === '?') showKeys();
  if (/^[1-9]$/.test(event.key)) {
    const tabs = [...document.querySelectorAll('[role=tab][id^=tab-]')];
    [...new Map(tabs.map(tab => [tab.id, tab])).values()][event.key - 1]?.click();
  }
});
document.addEventListener('keydown', event => {
  if (document.querySelector('#keys')?.open) return;
  const press = id => { document.querySelector('#' + id)?.click(); event.preventDefault(); };
  const isWriting = ['INPUT', 'TEXTAREA', 'SELECT'].includes(document.activeElement?.tagName);
  const isDataset = document.querySelector('#undo')?.checkVisibility();
  if (isDataset && !isWriting && (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z')
    press(event.shiftKey ? 'redo' : 'undo');
  const editor = document.querySelector('#editor');
  if (!editor || !editor.checkVisibility()) return;
  const box = editor.querySelector('#caption-text');
  if (document.activeElement === box) {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey))
      press(event.shiftKey ? 'caption-previous' : 'caption-next');
    if (event.key === 'Escape') box.blur();
    return;
  }
  if (isWriting || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === 'ArrowLeft') press('caption-previous');
  if (event.key === 'ArrowRight') press('caption-next');
  if (event.key === 'Escape') press('caption-close');
  if (event.key !== 'Enter' || document.activeElement?.tagName === 'BUTTON') return;
  box.focus();
  event.preventDefault();
});
document.addEventListener('input', event => {
  if (event.target.matches('[data-testid="textbox"]'))
    event.target.dispatchEvent(new KeyboardEvent('keypress', {key: 'Unidentified'}));
});
document.addEventListener('paste', event => {
  if (event.target.matches('.path :is(input, textarea)'))
    setTimeout(() => event.target.dispatchEvent(new FocusEvent('blur')), 100);
});
const holdsFiles = event => event.dataTransfer?.types.includes('Files');
document.addEventListener('dragenter', event => {
  const opener = document.querySelector('#upload > button');
  if (!holdsFiles(event) || !opener?.checkVisibility() || opener.classList.contains('open')) return;
  if (!document.querySelector('#drop')?.checkVisibility()) opener.click();
});
for (const what of ['dragover', 'drop'])
  document.addEventListener(what, event => { if (holdsFiles(event)) event.preventDefault(); });
</script>"""
)
