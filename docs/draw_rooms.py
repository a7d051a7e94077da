"""Draws the rooms of gdistill and their imports as docs/rooms.svg, and the table of rooms.

    python docs/draw_rooms.py

writes docs/rooms.svg and, between two markers, the table in docs/architecture.md. Both come from
the imports, from the docstrings of the rooms and from the table in tests/house/test_layers.py.

A room is drawn one floor above the highest room that it imports. An import a -> c is left out of
the picture if the imports a -> b and b -> c are there. Lines that cross several floors pass through
invisible points on the floors between, and the order of rooms and points on a floor is the one with
the fewest crossings that was found. The same files always give the same bytes.
"""

import ast
import dataclasses
import html
import itertools
import math
import pathlib
import random
import re
from collections.abc import Mapping, Sequence

import measure_rooms

DOCS = pathlib.Path(__file__).resolve().parent
PICTURE, PAGE = DOCS / 'rooms.svg', DOCS / 'architecture.md'
BEGIN, END = '<!-- rooms: written by docs/draw_rooms.py -->', '<!-- /rooms -->'

# Theme: what its rooms are for, their fill and their outline.
THEMES = {
  'entrance': ('where people come in', '#e9e5f5', '#6f5bb5'),
  'work': ('what gdistill does', '#fdebd3', '#c87a14'),
  'run': ('what a run is made of', '#e0f2e3', '#3b8f52'),
  'mathematics': ('mathematics and networks', '#dfedfb', '#2f74b5'),
  'machine': ('the machine', '#ececee', '#71747a'),
}
# Room: its theme and two lines of words.
CAPTIONS = {
  'main': ('entrance', 'python -m gdistill.main', ''),
  'cli': ('entrance', 'the command gdistill:', 'one file a subcommand'),
  'notebook': ('entrance', 'what notebooks call', ''),
  'evaluation': ('work', 'draws the w × N grid,', 'measures, reports'),
  'published': ('work', 'imports teachers,', 'exports students'),
  'drawing': ('work', 'samples, edits, inpaints', 'with finished rounds'),
  'training': ('work', 'the only training loop,', 'round after round'),
  'frozen': ('run', 'autoencoder and text', 'encoder, kept fixed'),
  'rounds': ('run', 'the plan, the network,', 'the finished folder'),
  'data': ('run', 'sources, batches,', 'the cache of latents'),
  'workdir': ('run', 'storage, checkpoints,', 'the ledger, the lock'),
  'recipe': ('run', "a run's settings,", 'read and checked'),
  'convert': ('mathematics', 'names of published', 'weights to ours, back'),
  'models': ('mathematics', 'Flax networks: U-Nets,', 'DiT, VAE, CLIP'),
  'samplers': ('mathematics', 'DDIM, stochastic,', 'ancestral, DPM-Solver'),
  'stages': ('mathematics', 'the objectives: one', 'loss function each'),
  'core': ('mathematics', 'the mathematics:', 'jax alone, no networks'),
  'process': ('machine', 'signals, watchdog,', 'progress, seconds'),
  'devices': ('machine', 'mesh, sharding,', 'several processes'),
  'errors': ('machine', 'what can go wrong,', 'with exit codes'),
}

WIDTH, MARGIN, TOP, BOTTOM = 1000, 24, 78, 58
BOX, BOX_HEIGHT, FLOOR = 170, 58, 92  # a room's width and height; from floor to floor
CENTRED = 0.4  # how strongly a room is drawn to the middle; a line draws it with 1
GAP, POINT = 20, 20  # between two rooms; the width that a passing line takes
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
TRIES = 300  # random orders that the search for few crossings starts from


@dataclasses.dataclass(frozen=True)
class Node:
  """A room on its floor, or a point where the line from `room` down to `target` passes a floor."""

  floor: int
  room: str
  target: str = ''

  @property
  def width(self) -> int:
    return POINT if self.target else BOX


def reduced(graph: measure_rooms.Graph) -> dict[str, list[str]]:
  """Returns the graph without the imports that follow from two others (transitive reduction)."""
  reach = measure_rooms.reached(graph)
  return {
    a: sorted(c for c in others if not any(c in reach[b] for b in others))
    for a, others in graph.items()
  }


def chains(graph: measure_rooms.Graph) -> list[list[Node]]:
  """Returns every line of the picture as its nodes, from the upper room to the lower room."""
  floors, out = measure_rooms.floors(graph), []
  for upper, others in sorted(reduced(graph).items()):
    for lower in others:
      between = range(floors[upper] - 1, floors[lower], -1)
      points = [Node(floor, upper, lower) for floor in between]
      out.append([Node(floors[upper], upper), *points, Node(floors[lower], lower)])
  return out


# ---- the order of the nodes on every floor

Rows = list[list[Node]]
Links = list[list[tuple[Node, Node]]]  # for every floor above the ground: (node, node below)


def arranged(graph: measure_rooms.Graph) -> tuple[Rows, Links]:
  """Returns the floors from the ground up, each from left to right, with few crossings."""
  found = chains(graph)
  floors = measure_rooms.floors(graph)
  nodes = {Node(floor, room) for room, floor in floors.items()} | {n for c in found for n in c}
  links = [[] for _ in range(max(floors.values()) + 1)]
  for chain in found:
    for upper, lower in itertools.pairwise(chain):
      links[upper.floor].append((upper, lower))
  first = [[] for _ in links]
  for node in sorted(nodes, key=lambda n: (n.floor, n.room, n.target)):
    first[node.floor].append(node)
  draw, best = random.Random(0), None  # noqa: S311 - a fixed seed, so that the picture never changes
  for _ in range(TRIES):
    rows = [draw.sample(row, len(row)) for row in first]
    for sweep in range(8):
      _sort_by_neighbours(rows, links, upwards=sweep % 2 == 0)
    cost = (_crossings(rows, links), _stretch(rows, links))
    if best is None or cost < best[0]:
      best = cost, rows
  return best[1], links


def _sort_by_neighbours(rows: Rows, links: Links, upwards: bool) -> None:
  """Sorts each floor by the mean place of the nodes that its nodes are joined to."""
  for floor in range(1, len(rows)) if upwards else range(len(rows) - 2, -1, -1):
    if upwards:
      pairs, other = [(a, b) for a, b in links[floor]], rows[floor - 1]
    else:
      pairs, other = [(b, a) for a, b in links[floor + 1]], rows[floor + 1]
    place = {node: (i + 0.5) / len(other) for i, node in enumerate(other)}
    own = {node: (i + 0.5) / len(rows[floor]) for i, node in enumerate(rows[floor])}
    mean = {}
    for node in rows[floor]:
      joined = [place[b] for a, b in pairs if a == node]
      mean[node] = math.fsum(joined) / len(joined) if joined else own[node]
    rows[floor].sort(key=lambda node: mean[node])


def _places(rows: Rows) -> dict[Node, int]:
  return {node: i for row in rows for i, node in enumerate(row)}


def _crossings(rows: Rows, links: Links) -> int:
  place, count = _places(rows), 0
  for pairs in links:
    ends = [(place[a], place[b]) for a, b in pairs]
    count += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
  return count


def _stretch(rows: Rows, links: Links) -> float:
  """Returns how far the lines run sideways, in widths of the picture."""
  place = {node: (i + 0.5) / len(row) for row in rows for i, node in enumerate(row)}
  return math.fsum(abs(place[a] - place[b]) for pairs in links for a, b in pairs)


# ---- where every node stands


def positions(rows: Rows, links: Links) -> dict[Node, int]:
  """Returns the middle of every node: near the nodes it is joined to, without overlaps."""
  x = {}
  for row in rows:
    room = (WIDTH - 2 * MARGIN) / len(row)
    x |= {node: MARGIN + room * (i + 0.5) for i, node in enumerate(row)}
  joined = {node: [] for node in x}
  for a, b in (pair for pairs in links for pair in pairs):
    weight = (1, 2, 20)[bool(a.target) + bool(b.target)]  # long lines are the straightest
    joined[a].append((b, weight))
    joined[b].append((a, weight))
  for _ in range(600):
    for row in [*rows, *reversed(rows)]:
      wanted = []
      for node in row:
        near = [(x[other], weight) for other, weight in joined[node]]
        near += [] if node.target else [(WIDTH / 2, CENTRED)]
        total = math.fsum(weight for _, weight in near)
        wanted.append(math.fsum(a * weight for a, weight in near) / total)
      x |= dict(zip(row, _apart(row, wanted), strict=True))
  _straighten(rows, x)
  return {node: round(value) for node, value in x.items()}


def _straighten(rows: Rows, x: dict[Node, float]) -> None:
  """Puts all points of a line below one another where their neighbours leave the space."""
  lines = {}
  for row in rows:
    for i, node in enumerate(row):
      if node.target:
        lines.setdefault((node.room, node.target), []).append((node, row[:i], row[i + 1 :]))
  for points in lines.values():
    low, high = MARGIN, WIDTH - MARGIN
    for _, left, right in points:
      if left:
        low = max(low, x[left[-1]] + (left[-1].width + POINT) / 2 + GAP)
      if right:
        high = min(high, x[right[0]] - (right[0].width + POINT) / 2 - GAP)
    if low <= high:
      middle = math.fsum(x[node] for node, *_ in points) / len(points)
      x |= {node: min(max(middle, low), high) for node, *_ in points}


def _apart(row: Sequence[Node], wanted: Sequence[float]) -> list[float]:
  """Returns the places nearest to `wanted` (least squares) that keep the order and the gaps."""
  offset, offsets = 0.0, []
  spare = WIDTH - 2 * MARGIN - sum(node.width for node in row)
  gap = min(GAP, spare / max(1, len(row) - 1))
  if gap < 6:
    raise SystemExit(f'floor {row[0].floor} has too many rooms: make BOX narrower')
  for i, node in enumerate(row):
    offset += (row[i - 1].width + node.width) / 2 + gap if i else 0.0
    offsets.append(offset)
  blocks = []  # (sum, count) of nodes that stand as close as they may
  for value, by in zip(wanted, offsets, strict=True):
    blocks.append((value - by, 1))
    while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
      (a, m), (b, n) = blocks.pop(), blocks.pop()
      blocks.append((a + b, m + n))
  base = [total / count for total, count in blocks for _ in range(count)]
  low = MARGIN + row[0].width / 2
  high = WIDTH - MARGIN - row[-1].width / 2 - offsets[-1]
  return [min(max(b, low), high) + by for b, by in zip(base, offsets, strict=True)]


# ---- the picture


def picture(files: Sequence[measure_rooms.File]) -> str:
  """Returns docs/rooms.svg."""
  graph = measure_rooms.room_graph(files)
  odd = sorted(set(graph) ^ set(CAPTIONS))
  if odd:
    raise SystemExit(f'CAPTIONS and the rooms of gdistill/ differ in {", ".join(odd)}')
  if circles := measure_rooms.circles(graph):
    raise SystemExit(f'rooms in a circle have no floor: {circles}')
  rows, links = arranged(graph)
  x = positions(rows, links)
  height = TOP + FLOOR * (len(rows) - 1) + BOX_HEIGHT + BOTTOM
  y = {node: TOP + FLOOR * (len(rows) - 1 - node.floor) for node in x}
  parts = [*_frame(height, len(rows)), *_lines(graph, rows, x, y)]
  for row in rows:
    parts += [_box(node.room, x[node], y[node]) for node in row if not node.target]
  return '\n'.join([*parts, *_legend(height), '</svg>', ''])


def _frame(height: int, count: int) -> list[str]:
  out = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
    f'viewBox="0 0 {WIDTH} {height}" role="img" font-family="{FONT}" text-anchor="middle">',
    '<title>The rooms of gdistill</title>',
    '<desc>Boxes are the rooms of the package gdistill. A line leads from a room down to a room '
    'that it uses.</desc>',
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0.5L8,4L0,7.5z" fill="#7c828c"/>'
    '</marker></defs>',
    f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="12" fill="#fcfcfb" '
    'stroke="#d5d8dd"/>',
  ]
  for floor in range(0, count, 2):
    y = TOP + FLOOR * (count - 1 - floor) - (FLOOR - BOX_HEIGHT) / 2
    out.append(f'<rect x="1" y="{y:g}" width="{WIDTH - 2}" height="{FLOOR}" fill="#f3f4f5"/>')
  return out


def _lines(graph, rows, x, y) -> list[str]:
  """Returns the lines: smooth curves from the lower edge of a room to the upper edge of another."""
  found = chains(graph)
  leave, enter = _ports(found, x, first=True), _ports(found, x, first=False)
  out = ['<g fill="none" stroke="#9aa0a9" stroke-width="1.6">']
  for i, chain in enumerate(found):
    points = [(leave[i], y[chain[0]] + BOX_HEIGHT)]
    for node in chain[1:-1]:
      points += [(x[node], y[node]), (x[node], y[node] + BOX_HEIGHT)]
    points.append((enter[i], y[chain[-1]] - 1))
    path = f'M{points[0][0]},{points[0][1]}'
    for j in range(0, len(points) - 1, 2):
      (a, b), (c, d) = points[j], points[j + 1]
      half = (d - b) / 2
      path += f'C{a},{b + half:g} {c},{d - half:g} {c},{d}'
      if j + 2 < len(points):
        path += f'V{points[j + 2][1]}'
    out.append(f'<path d="{path}" marker-end="url(#tip)"/>')
  return [*out, '</g>']


def _ports(found: list[list[Node]], x: Mapping[Node, int], first: bool) -> dict[int, int]:
  """Returns {line: where it touches its first or last room}: side by side in the lines' order."""
  ends = {}
  for i, chain in enumerate(found):
    room, next_to = (chain[0], chain[1]) if first else (chain[-1], chain[-2])
    ends.setdefault(room, []).append((x[next_to], i))
  out = {}
  for room, lines in ends.items():
    space = min(28, (BOX - 50) / len(lines))
    for place, (_, i) in enumerate(sorted(lines)):
      out[i] = round(x[room] + space * (place - (len(lines) - 1) / 2))
  return out


def _box(room: str, x: int, y: int) -> str:
  theme, *words = CAPTIONS[room]
  _, fill, stroke = THEMES[theme]
  words = [html.escape(w, quote=False) for w in words if w]
  top = y + 7 * (2 - len(words))
  lines = ''.join(
    f'<text x="{x}" y="{top + 36 + 14 * i}" font-size="12" fill="#3d434b">{w}</text>'
    for i, w in enumerate(words)
  )
  return (
    f'<rect x="{x - BOX // 2}" y="{y}" width="{BOX}" height="{BOX_HEIGHT}" rx="8" fill="{fill}" '
    f'stroke="{stroke}" stroke-width="1.4"/>'
    f'<text x="{x}" y="{top + 20}" font-size="15" font-weight="600" fill="#16191d">{room}</text>'
    f'{lines}'
  )


def _legend(height: int) -> list[str]:
  out = [
    f'<text x="{WIDTH / 2:g}" y="34" font-size="18" font-weight="600" fill="#16191d">'
    'The rooms of gdistill</text>',
    f'<text x="{WIDTH / 2:g}" y="54" font-size="12.5" fill="#3d434b">Every room uses only rooms '
    'below it. An arrow leads to a room that is used; arrows that follow from others are left '
    'out.</text>',
  ]
  x, y = MARGIN + 10.0, height - 32
  spare = WIDTH - 2 * x - math.fsum(21 + 6.9 * len(words) for words, *_ in THEMES.values())
  for words, fill, stroke in THEMES.values():
    out.append(
      f'<rect x="{x:.0f}" y="{y}" width="14" height="14" rx="3" fill="{fill}" stroke="{stroke}"/>'
      f'<text x="{x + 21:.0f}" y="{y + 11.5}" font-size="12.5" fill="#3d434b" '
      f'text-anchor="start">{words}</text>'
    )
    x += 21 + 6.9 * len(words) + spare / (len(THEMES) - 1)
  return out


# ---- the table


def table(files: Sequence[measure_rooms.File], rows: Mapping[str, ast.expr]) -> str:
  """Returns the table of rooms in Markdown, from the roof down; `rows` are those of ALLOWED."""
  allowed = {room: ast.literal_eval(value) for room, value in rows.items()}
  out = ['| room | what lives there | may use |', '|---|---|---|']
  for room in reversed(allowed):
    file = next(f for f in files if f.path in _own_files(room))
    folder = file.path.removesuffix('/__init__.py')
    words = first_sentence(ast.get_docstring(file.tree) or '').replace('|', '\\|')
    name = f'{room}/' if folder != file.path else f'{room}.py'
    uses = _uses(allowed[room], set(allowed) - {room})
    out.append(f'| [{name}](../{folder}) | {words} | {uses} |')
  return '\n'.join(out)


def _own_files(room: str) -> tuple[str, str]:
  return f'gdistill/{room}/__init__.py', f'gdistill/{room}.py'


def _uses(allowed: set[str], others: set[str]) -> str:
  """Returns the rooms in words: by name, or all but a few."""
  rest = sorted(others - allowed)
  if not allowed:
    return 'nothing'
  return f'all but {", ".join(rest)}' if len(rest) < 4 else ', '.join(sorted(allowed))


def first_sentence(docstring: str) -> str:
  """Returns the first sentence of a docstring, in one line."""
  paragraph = ' '.join(docstring.partition('\n\n')[0].split())
  return re.split(r'(?<=[.!?]) ', paragraph, maxsplit=1)[0]


def with_table(page: str, table: str) -> str:
  """Returns the page with `table` between the two markers."""
  before, _, rest = page.partition(f'{BEGIN}\n')
  _, _, after = rest.partition(f'{END}\n')
  return f'{before}{BEGIN}\n\n{table}\n\n{END}\n{after}'


def main() -> None:
  files = measure_rooms.read()
  PICTURE.write_text(picture(files), encoding='utf-8')
  page = PAGE.read_text(encoding='utf-8')
  PAGE.write_text(with_table(page, table(files, measure_rooms.layers())), encoding='utf-8')


if __name__ == '__main__':
  main()
