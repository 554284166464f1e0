"""Looking through pictures in the browser: a tick selects, a click shows one large, keys go to the next."""

LOOKS = """
const cells = () => [...element.querySelectorAll('.cell')];
const nameOf = cell => cell.dataset.picture;
let last = '', shown = '';
const select = (some, on) => {
  for (const cell of some) {
    cell.classList.toggle('picked', on);
    cell.querySelector('.tick').setAttribute('aria-checked', on);
  }
  trigger('click', {on, pictures: some.map(nameOf)});
};
document.querySelector('#large-view')?.remove();
const view = document.createElement('dialog');
view.id = 'large-view';
view.innerHTML = `<img alt=""><div class="controls"><span class="quiet"></span>
  <button class="small" data-step="-1">Previous</button><button class="small" data-step="1">Next</button>
  <button class="small" data-mark title="Key: x"></button>
  <button class="small" data-close>Close</button></div>`;
(document.querySelector('.gradio-container') ?? document.body).append(view);
const here = () => cells().find(cell => nameOf(cell) === shown);
const show = cell => {
  if (!cell) return view.close();
  const isPicked = cell.classList.contains('picked'), img = view.querySelector('img');
  shown = nameOf(cell);
  if (img.getAttribute('src') !== cell.dataset.large) img.src = cell.dataset.large;
  img.alt = shown;
  view.classList.toggle('picked', isPicked);
  view.querySelector('span').textContent =
    `${shown}, ${cells().indexOf(cell) + 1} of ${cells().length}${isPicked ? ', selected' : ''}`;
  view.querySelector('[data-mark]').textContent = isPicked ? 'Do not select' : 'Select';
  if (!view.open) view.showModal();
};
const step = by => {
  const all = cells();
  show(all[(all.indexOf(here()) + by + all.length) % all.length]);
};
const mark = () => {
  const cell = here();
  if (cell) select([cell], !cell.classList.contains('picked'));
  show(cell);
};
element.addEventListener('click', event => {
  const cell = event.target.closest('.cell');
  if (!cell) return;
  if (!(event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest('.tick'))) return show(cell);
  const all = cells(), at = all.indexOf(cell), on = !cell.classList.contains('picked');
  const from = event.shiftKey ? all.findIndex(other => nameOf(other) === last) : -1;
  last = nameOf(cell);
  select(from < 0 ? [cell] : all.slice(Math.min(from, at), Math.max(from, at) + 1), on);
});
view.addEventListener('click', event => {
  const {step: by, mark: marks, close} = event.target.dataset;
  if (by) step(Number(by));
  if (marks !== undefined) mark();
  if (close !== undefined || event.target === view) view.close();
});
view.addEventListener('keydown', event => {
  const does = {ArrowLeft: () => step(-1), ArrowRight: () => step(1), x: mark}[event.key];
  if (!does) return;
  event.preventDefault();
  event.stopPropagation();
  does();
});
"""
