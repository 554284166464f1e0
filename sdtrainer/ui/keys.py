"""The keyboard, as a script in the page's head: keys of the caption view, and pasting into text fields.

gradio's text fields tell of pressed letters only (6.31); pasting and deleting are passed on to them as such.
"""

HEAD = """<script>
document.addEventListener('keydown', event => {
  const editor = document.querySelector('#editor');
  if (!editor || !editor.checkVisibility()) return;
  const box = editor.querySelector('#caption textarea');
  const press = id => { document.querySelector('#' + id)?.click(); event.preventDefault(); };
  const isWriting = ['INPUT', 'TEXTAREA', 'SELECT'].includes(document.activeElement?.tagName);
  if (document.activeElement === box) {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) press('caption-next');
    if (event.key === 'Escape') box.blur();
    return;
  }
  if (isWriting || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === 'ArrowLeft') press('caption-prev');
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
</script>"""
