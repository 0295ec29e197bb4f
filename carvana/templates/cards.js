// Sorts and filters the cards of a page, enlarges one of them, and steps through them.
const list = document.querySelector('.cards');
const cards = [...document.querySelectorAll('.card')];
const sort = document.getElementById('sort');
const filter = document.getElementById('filter');
const count = document.getElementById('count');
const dialog = document.querySelector('dialog');
let shown = cards;
let current = 0;

function compare(a, b) {
  if (a < b) return -1;
  return a > b ? 1 : 0;
}

function arrange() {
  const [key, direction] = sort.value.split(' ');
  const text = filter.value.toLowerCase();
  const value = card => key === 'name' ? card.dataset.name : Number(card.dataset[key]);
  shown = cards
    .filter(card => card.dataset.name.toLowerCase().includes(text))
    .sort((a, b) => compare(value(a), value(b)) * Number(direction));
  list.replaceChildren(...shown);
  count.textContent = `${shown.length} of ${cards.length}`;
}

function show(index) {
  current = (index + shown.length) % shown.length;
  const card = shown[current];
  const facts = card.querySelector('.facts').textContent;
  const figures = [...card.querySelectorAll('figure')].map(figure => figure.cloneNode(true));
  dialog.querySelector('strong').textContent = `${card.dataset.name}   ${facts}`;
  dialog.querySelector('.pictures').replaceChildren(...figures);
  dialog.querySelector('output').textContent = `${current + 1} of ${shown.length}`;
  if (!dialog.open) dialog.showModal();
}

function enlarge(event) {
  const button = event.target.closest('button');
  if (button) show(shown.indexOf(button.closest('.card')));
}

function step(event) {
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  if (!(event.key in steps)) return;
  show(current + steps[event.key]);
  event.preventDefault();
}

function focusCurrent() {
  shown[current]?.querySelector('button').focus();
}

if (list) {
  sort.addEventListener('change', arrange);
  filter.addEventListener('input', arrange);
  list.addEventListener('click', enlarge);
  dialog.addEventListener('keydown', step);
  dialog.querySelector('.before').addEventListener('click', () => show(current - 1));
  dialog.querySelector('.after').addEventListener('click', () => show(current + 1));
  dialog.querySelector('.close').addEventListener('click', () => dialog.close());
  // The browser itself moves the focus when a dialog closes; this comes after it.
  dialog.addEventListener('close', () => setTimeout(focusCurrent));
  arrange();
}
