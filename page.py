"""Self-contained HTML pages: cards of pictures, curves, tables. No network, no build step; works from file://."""

import base64
import html
import io
import math

import numpy as np
from PIL import Image

from pictures import printable, replacing

THUMBNAIL = 240  # pixels high, at most
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
)  # told apart with any kind of colour vision (Okabe and Ito, 2008)
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 460, 240, 56, 30, 12, 12  # of a chart, and its margins

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --muted: #5c5c63; --ground: #ffffff; --card: #f4f4f6; --line: #c9c9cf; --accent: #0060a8; --mark: #fff3c4 }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --muted: #a6a6b0; --ground: #17171a; --card: #232328; --line: #46464e; --accent: #6cb8f0; --mark: #4d4215 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 110rem; font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground) }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } p { margin: .25rem 0 .75rem; max-width: 60rem; color: var(--muted) }
a, button, input, select, summary { accent-color: var(--accent) } :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } .chart { flex: 1 1 320px; max-width: 560px; margin: 0 } .chart svg { width: 100%; height: auto; display: block }
.chart text { fill: var(--muted); font: 12px system-ui, sans-serif } .chart .grid { stroke: var(--line); stroke-width: 1; opacity: .6 } figcaption { font-weight: 600 }
table { border-collapse: collapse; font-size: .9rem } td, th { text-align: left; padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere }
tr.changed td { background: var(--mark); font-weight: 600 } .wide { overflow-x: auto }
.tools { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .5rem 0 1rem } .tools label { color: var(--muted) }
.tools input, .tools select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .3rem .5rem; max-width: 100% }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; list-style: none; padding: 0; margin: 0 }
.card { background: var(--card); border-radius: 10px; padding: .6rem; min-width: 0 } .card h3 { font-size: .9rem; margin: 0; overflow-wrap: anywhere } .card .facts { font-size: .85rem; color: var(--muted); margin: .1rem 0 .5rem }
.card button { display: grid; grid-template-columns: repeat(6, 1fr); gap: 4px; padding: 0; border: 0; background: none; width: 100%; cursor: zoom-in; font: inherit; color: inherit }
.card figure { margin: 0; grid-column: span 2; min-width: 0 } .card figure.large { grid-column: span 3 } .card img { width: 100%; height: auto; display: block; border-radius: 4px; background: var(--line) } .card figcaption { font-size: .72rem; font-weight: 400; color: var(--muted); text-align: left }
dialog { width: min(96vw, 120rem); max-height: 96vh; border: 0; border-radius: 12px; padding: 1rem; color: var(--ink); background: var(--ground) } dialog::backdrop { background: rgba(0, 0, 0, .75) }
dialog header { display: flex; gap: .5rem 1rem; align-items: center; flex-wrap: wrap; margin-bottom: .5rem } dialog header strong { flex: 1 1 14rem; overflow-wrap: anywhere } dialog button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .35rem .8rem; cursor: pointer }
dialog .pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .75rem } dialog figure { margin: 0 } dialog img { width: 100%; height: auto; display: block } dialog figcaption { font-size: .85rem; font-weight: 400; color: var(--muted) }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); gap: .75rem } .figures figure { margin: 0; min-width: 0 }
.figures img { width: 100%; height: auto; display: block; border-radius: 4px } .figures figcaption { font-size: .75rem; font-weight: 400; color: var(--muted); overflow-wrap: anywhere }
"""

SCRIPT = """
const list = document.querySelector('.cards'), cards = [...document.querySelectorAll('.card')];
const sort = document.getElementById('sort'), filter = document.getElementById('filter'), count = document.getElementById('count');
const dialog = document.querySelector('dialog');
let shown = cards, open = 0;
function arrange() {
  const [key, direction] = sort.value.split(' '), words = filter.value.toLowerCase();
  const value = card => key === 'name' ? card.dataset.name : Number(card.dataset[key]);
  const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * Number(direction);
  shown = cards.filter(card => card.dataset.name.toLowerCase().includes(words)).sort(order);
  list.replaceChildren(...shown);
  count.textContent = `${shown.length} of ${cards.length}`;
}
function show(index) {
  open = (index + shown.length) % shown.length;
  const card = shown[open];
  dialog.querySelector('strong').textContent = `${card.dataset.name}   ${card.querySelector('.facts').textContent}`;
  dialog.querySelector('.pictures').replaceChildren(...[...card.querySelectorAll('figure')].map(figure => figure.cloneNode(true)));
  dialog.querySelector('output').textContent = `${open + 1} of ${shown.length}`;
  if (!dialog.open) dialog.showModal();
}
if (list) {
  sort.addEventListener('change', arrange);
  filter.addEventListener('input', arrange);
  list.addEventListener('click', event => { const button = event.target.closest('button'); if (button) show(shown.indexOf(button.closest('.card'))); });
  dialog.addEventListener('keydown', event => {
    if (event.key === 'ArrowRight') show(open + 1); else if (event.key === 'ArrowLeft') show(open - 1); else return;
    event.preventDefault();
  });
  dialog.querySelector('.before').addEventListener('click', () => show(open - 1));
  dialog.querySelector('.after').addEventListener('click', () => show(open + 1));
  dialog.querySelector('.close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => setTimeout(() => shown[open]?.querySelector('button').focus()));  // behind the browser's own choice
  arrange();
}
"""


def write_page(path, title, intro, *sections):
    """A page of HTML sections, as the functions below return them. Raises UserError where it cannot be written."""
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n<p>{escape(intro)}</p>\n'
        + "\n".join(sections)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def escape(text):
    return html.escape(printable(text))


def section(title, *content):
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def embedded(picture):
    """uint8 (H, W, 3) or (H, W) -> a data URI: a mask as PNG, anything else as JPEG, no higher than THUMBNAIL."""
    image = Image.fromarray(picture)
    if image.height > THUMBNAIL:
        image = image.resize(
            (max(1, round(image.width * THUMBNAIL / image.height)), THUMBNAIL), Image.Resampling.BOX
        )
    buffer = io.BytesIO()
    mask = picture.ndim == 2
    image.convert("L" if mask else "RGB").save(
        buffer, "PNG" if mask else "JPEG", **({"compress_level": 6} if mask else {"quality": 80})
    )
    return f"data:image/{'png' if mask else 'jpeg'};base64,{base64.b64encode(buffer.getbuffer()).decode()}"


def cards(items, orders):
    """Cards of pictures that can be sorted, filtered, enlarged and stepped through.

    items: dicts of "name", "facts" (a line), "pictures" ({caption: data URI}) and a number for each of
    orders: {"data name": (label, 1 for the smallest first, -1 for the largest)}."""
    options = [(f"{key} {direction}", label) for key, (label, direction) in orders.items()] + [
        ("name 1", "name")
    ]
    tools = (
        '<div class="tools"><label>sort by <select id="sort">'
        + "".join(f'<option value="{value}">{escape(label)}</option>' for value, label in options)
        + '</select></label><label>filter by name <input id="filter" type="search" autocomplete="off"></label><span id="count" role="status"></span></div>'
    )
    found = []
    for item in items:
        large = "large" if len(item["pictures"]) > 3 else ""
        figures = "".join(
            f'<figure class="{large if i < 2 else ""}"><img src="{uri}" alt="{escape(caption)} of {escape(item["name"])}" loading="lazy" decoding="async"><figcaption>{escape(caption)}</figcaption></figure>'
            for i, (caption, uri) in enumerate(item["pictures"].items())
        )
        data = " ".join(f'data-{key}="{item[key]:.6f}"' for key in orders)
        found.append(
            f'<li class="card" data-name="{escape(item["name"])}" {data}><h3>{escape(item["name"])}</h3><p class="facts">{escape(item["facts"])}</p>'
            f'<button type="button" aria-label="enlarge {escape(item["name"])}">{figures}</button></li>'
        )
    dialog = (
        '<dialog aria-label="enlarged"><header><strong></strong><output></output><button type="button" class="before" aria-label="previous">&larr;</button>'
        '<button type="button" class="after" aria-label="next">&rarr;</button><button type="button" class="close">close</button></header><div class="pictures"></div></dialog>'
    )
    return f'{tools}\n<ul class="cards">\n' + "\n".join(found) + f"\n</ul>\n{dialog}"


def figures(pictures):
    """{caption: data URI} -> small pictures side by side."""
    return (
        '<div class="figures">'
        + "".join(
            f'<figure><img src="{uri}" alt="{escape(caption)}" loading="lazy" decoding="async"><figcaption>{escape(caption)}</figcaption></figure>'
            for caption, uri in pictures.items()
        )
        + "</div>"
    )


def table(rows, heads=(), changed=()):
    """Rows of texts; those whose first is in `changed` stand out."""
    head = f"<tr>{''.join(f'<th>{escape(one)}</th>' for one in heads)}</tr>" if heads else ""
    body = "".join(
        f"<tr{' class=changed' if row[0] in changed else ''}>{''.join(f'<td>{escape(one)}</td>' for one in row)}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>{head}{body}</table></div>'


def charts(*figures):
    return f'<div class="charts">{"".join(figures)}</div>'


def ticks(low, high, count=4):
    """Round numbers within a range."""
    step = (high - low) / count or 1
    power = 10 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
    return [
        round(step * i, 12)
        for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def chart(title, lines, log=False):
    """{label: [(x, y)]} -> a line chart as SVG; log: y on a logarithmic scale, values of 0 and less left out."""
    lines = {
        label: [
            (x, math.log10(y) if log else y)
            for x, y in points
            if y is not None and math.isfinite(y) and (y > 0 or not log)
        ]
        for label, points in lines.items()
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><p>nothing yet</p></figure>'
    xs, ys = zip(*points)
    low, high = min(ys), max(ys)
    low, high = (
        low - 0.05 * (high - low or abs(low) or 1),
        high + 0.05 * (high - low or abs(high) or 1),
    )
    first, last = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x, y):
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT), TOP + (high - y) / (
            high - low
        ) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    marks = (
        [
            y
            for decade in range(math.floor(low), math.ceil(high))
            for y in (decade, decade + math.log10(2), decade + math.log10(5))
            if low <= y <= high
        ]
        if log
        else ticks(low, high)
    )
    for y in marks:
        _, at = place(first, y)
        drawn.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/><text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10**y if log else y:.3g}</text>'
        )
    for x in sorted({round(x) for x in ticks(first, last)}):
        at, _ = place(x, low)
        drawn.append(f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x}</text>')
    for (label, line), colour in zip(lines.items(), COLOURS):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{escape(label)}, {point[0]:g}: {10 ** point[1] if log else point[1]:.5g}</title></circle>'
            for point in line[-60:]
            for x, y in (place(*point),)
        ]
    key = (
        " ".join(
            f'<span style="color:{colour}">&#9632;</span> {escape(label)}'
            for label, colour in zip(lines, COLOURS)
        )
        if len(lines) > 1
        else ""
    )
    said = "; ".join(
        f"{label}: {points[-1][1]:.5g}" for label, points in lines.items() if points and not log
    )
    return f'<figure class="chart"><figcaption>{escape(title)} <small>{key}</small></figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}{"; last " + escape(said) if said else ""}">{"".join(drawn)}</svg></figure>'


def histogram(title, values, bins=20):
    """Counts of values as SVG bars."""
    counts, edges = np.histogram(values, bins)
    tallest, step = max(counts.max(), 1), (WIDTH - LEFT - RIGHT) / len(counts)
    drawn = [
        f'<rect x="{LEFT + i * step:.1f}" y="{TOP + (1 - count / tallest) * (HEIGHT - TOP - BOTTOM):.1f}" width="{max(step - 1, 1):.1f}" height="{count / tallest * (HEIGHT - TOP - BOTTOM):.1f}" fill="{COLOURS[0]}">'
        f"<title>{edges[i]:.3g} to {edges[i + 1]:.3g}: {count}</title></rect>"
        for i, count in enumerate(counts)
    ]
    drawn += [
        f'<text x="{LEFT + (edge - edges[0]) / (edges[-1] - edges[0] or 1) * (WIDTH - LEFT - RIGHT):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{edge:.3g}</text>'
        for edge in ticks(edges[0], edges[-1], 5)
    ]
    drawn.append(f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{tallest}</text>')
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg></figure>'
