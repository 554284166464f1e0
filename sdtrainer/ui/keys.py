"""The keyboard: arrows and Enter in the caption view. A script in the page's head, which clicks the page's own buttons."""

HEAD = """<script>
document.addEventListener('keydown', event => {
  const editor = document.querySelector('#editor');
  if (!editor || !editor.checkVisibility()) return;
  const box = editor.querySelector('#caption textarea');
  const press = id => { const b = document.querySelector('#' + id); if (b) { b.click(); event.preventDefault(); } };
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
  if (event.key === 'Enter' && document.activeElement?.tagName !== 'BUTTON') { box.focus(); event.preventDefault(); }
});
</script>"""
