"""One self-contained page about a run: pictures under a slider, tables, plots, losses, config."""

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from gdistill import errors
from gdistill import storage
from gdistill.evaluation.report import plots

Row = dict[str, Any]
Series = dict[str, dict[tuple[int, float], Row]]  # {label: {(num_steps, w): row}}

PROTOCOL = (
  'FD = Fréchet distance in the features of a small classifier trained on the training images: '
  'comparable within this report only, not FID'
)
_OF_CLASSIFIER = ('classifier', None)  # extractors of a report that says nothing else
_COLUMNS = [
  'model',
  'stage',
  'sampler',
  'num_steps',
  'w',
  'network_calls',
  'fd',
  'fd_held_out',
  'fd_teacher',
  'rms_teacher',
  'rms_images',
  'inception_score',
  'inception_score_std',
  'sfid',
  'kid',
  'kid_std',
  'accuracy',
  'precision',
  'recall',
  'nearest_training',
  'nearest_held_out',
  'images',
  'seconds_per_image',
  'grid',
  'guided',
  'round',
  'cell',
]
_TEXT = ('model', 'stage', 'sampler', 'grid', 'guided', 'round', 'cell')
_SAMPLERS = {'ddim': 'DDIM', 'dpm_solver': 'DPM-Solver++'}
_ACROSS, _DOWN = 10, 4  # pictures in a panel
_PICTURE_BYTES = 1_200_000


def write(workdir: epath.PathLike) -> epath.Path:
  """Writes WORKDIR/report/index.html from what the workdir has; what is missing is said so."""
  workdir = storage.path(workdir)
  # the real images measured like a sample, for scale, and the rows of the models
  rows = [
    r for name in ('data', 'metrics') for r in _clean(_json(workdir / 'report' / f'{name}.json'))
  ]
  rounds = _rounds(workdir)
  series = _series(rows)
  cells, across, note = _cells(workdir, series)
  unknown = {c for r in rows for c in r} - set(_COLUMNS)
  # what a protocol says of every row is said once
  shared = {c: rows[0].get(c) for c in sorted(unknown) if len({str(r.get(c)) for r in rows}) == 1}
  data = {
    'columns': [c for c in _COLUMNS if any(c in r for r in rows)] + sorted(unknown - shared.keys()),
    'rows': rows,
    'cells': cells,
    'across': across,
    'references': [[w, _place(cells, _reference(series, w))] for w in _ws(series)],
    'rounds': _round_cells(rounds, cells),
  }
  parts = {
    'title': html.escape(f'Distilling a guided diffusion model: {workdir.name or "this run"}'),
    'summary': _summary(series),
    'protocol': html.escape(protocol_of(rows)),
    'picture_note': html.escape(note),
    'shared': html.escape(''.join(f' {c}: {_num(v)}.' for c, v in shared.items())),
    'table': _paper_table(series),
    'plots': _plots(series, rows),
    'losses': _losses(rounds),
    'time': _time(_json(workdir / 'time.json'), rounds),
    'details': _details(_json(workdir / 'config.json'), rounds),
    # inside <script>, only "<" could end the element
    'data': json.dumps(data, allow_nan=False).replace('<', '\\u003c'),
  }
  folder = resources.files('gdistill.evaluation.report') / 'templates'
  template = folder.joinpath('page.html').read_text('utf-8')
  # one pass: what is put in is never read for placeholders again
  page = re.sub(r'\{\{(\w+)\}\}', lambda m: parts[m[1]], template)
  target = workdir / 'report' / 'index.html'
  storage.write_bytes(target, page.encode())
  return target


def markdown(rows: Sequence[Row]) -> str:
  """The table of the page as Markdown: model, sampler and steps down, FD / IS per w across."""
  series = _series(_clean(rows))
  ws = _ws(series)
  head = ['model, sampler', 'steps', 'calls', *(f'w = {_num(w)}: FD / IS' for w in ws)]
  lines = [head, ['---'] + ['---:'] * (len(head) - 1)]
  for label, num_steps, calls, by_w in _table_rows(series):
    pairs = [
      f'{_score(r.get("fd"))} / {_score(r.get("inception_score"))}' if r else '–'
      for r in (by_w.get(w) for w in ws)
    ]
    lines.append([label, _num(num_steps), _num(calls), *pairs])
  # a bar or an angle bracket in a cell would be read as Markdown or HTML
  text = [[html.escape(cell).replace('|', '\\|') for cell in line] for line in lines]
  table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in text)
  return f'{table}\n\n{protocol_of(rows)}.\n'


def protocol_of(rows: Sequence[Row]) -> str:
  """In words, what distances of these rows are."""
  row = next((r for r in rows if r.get('model') != 'data'), {})
  if row.get('extractor') in _OF_CLASSIFIER:
    return PROTOCOL
  count = row.get('reference_images')
  return (
    f'FD = {row.get("distance")}, a Fréchet distance in the features of {row["extractor"]} '
    f'(weights {row.get("extractor_digest")}; {row.get("resize")}) to {_num(count)} pictures of '
    f'{row.get("reference_set")}'
  )


# Reading: a file that is missing or broken leaves a gap in the page, not an error.


def _json(path: epath.Path) -> Any:
  try:
    return storage.read_json(path) if storage.exists(path) else None
  except errors.GdistillError:
    return None


def _clean(rows: Any) -> list[Row]:
  """Rows that are dicts, with None for every number that is not one."""
  clean = []
  for row in rows if isinstance(rows, Sequence) else ():
    if isinstance(row, Mapping):
      row = {str(k): _finite(v) for k, v in row.items()}
      numbers = (c for c in _COLUMNS if c not in _TEXT and c in row)
      clean.append({**row, **{c: row[c] if _is_number(row[c]) else None for c in numbers}})
  return clean


def _finite(value: Any) -> Any:
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _is_number(value: Any) -> bool:
  finite = isinstance(value, (int, float)) and math.isfinite(value)
  return finite and not isinstance(value, bool)


def _rounds(workdir: epath.Path) -> list[Row]:
  """[{name, card, log}], in the order of their names, for each folder with a card or a log."""
  rounds = []
  for name in storage.list_dir(workdir):
    folder = workdir / name
    if not folder.is_dir():
      continue
    card, log = _json(folder / 'card.json'), _log(folder / 'metrics.jsonl')
    if isinstance(card, Mapping) or log:
      rounds.append({'name': name, 'card': card if isinstance(card, Mapping) else {}, 'log': log})
  return rounds


def _log(path: epath.Path) -> list[Row]:
  try:
    text = storage.read_text(path) if storage.exists(path) else ''
  except errors.GdistillError:
    return []
  entries = []
  for line in text.splitlines():
    try:
      entry = json.loads(line)
    except ValueError:  # the last line of a killed process may be half a line
      continue
    if isinstance(entry, Mapping):
      entries.append(dict(entry))
  return entries


# Choosing: one row per curve and place.


def _series(rows: Iterable[Row]) -> Series:
  """Curves, students first; of rows at one place the last wins.

  Whether sampling was guided is part of a label only where the same cell exists both ways.
  """
  rows = [r for r in rows if r.get('model') != 'data' and r.get('w') is not None]
  rows = [r for r in rows if (r.get('num_steps') or 0) > 0]
  curve, both = ('model', 'stage', 'sampler'), set()
  seen: dict[tuple, Any] = {}
  for r in rows:
    place = tuple(r.get(c) for c in (*curve, 'num_steps', 'w', 'round', 'grid'))
    if seen.setdefault(place, r.get('guided')) != r.get('guided'):
      both.add(place[:3])
  series: Series = {}
  for r in rows:
    label = _label(r)
    if tuple(r.get(c) for c in curve) in both:
      label += ', guided' if r.get('guided') else ', unguided'
    series.setdefault(label, {})[r['num_steps'], r['w']] = {**r, 'label': label}
  return dict(sorted(series.items(), key=_order))


def _label(row: Row) -> str:
  after = '' if row.get('stage') in (row.get('model'), 'progressive', None) else row['stage']
  model = row.get('model')
  if model == 'floor':  # how far two draws of the reference are from each other
    model, after = 'teacher from other seeds', ''
  sampler = _SAMPLERS.get(row.get('sampler'), row.get('sampler'))
  return f'{model}{f" after {after}" if after else ""}, {sampler}'


def _order(item: tuple[str, dict]) -> tuple:
  label, places = item
  row = next(iter(places.values()))
  return row.get('model') != 'student', ' after ' in label, row.get('sampler') != 'ddim', label


def _values(rows: Iterable[Row], column: str) -> list:
  return sorted({r[column] for r in rows if r.get(column) is not None})


def _ws(series: Series) -> list[float]:
  return sorted({w for places in series.values() for _, w in places})


def _of(series: Series, model: str) -> list[Row]:
  return [r for p in series.values() for r in p.values() if r.get('model') == model]


def _reference(series: Series, w: float) -> Row | None:
  """The teacher at this w with the most steps; DDIM where several have as many."""
  found = [r for r in _of(series, 'teacher') if r['w'] == w]
  return max(found, key=lambda r: (r['num_steps'], r.get('sampler') == 'ddim'), default=None)


def _headline(series: Series) -> tuple[Row | None, Row | None, Row | None]:
  """(student nearest to 4 steps at the middle w, the teacher's reference there, DDIM as short)."""
  label = next((k for k, p in series.items() if next(iter(p.values()))['model'] == 'student'), None)
  if label is None:
    return None, None, None
  places = series[label]
  num_steps = min((n for n, _ in places), key=lambda n: (abs(math.log2(n / 4)), n))
  ws = sorted(w for n, w in places if n == num_steps)
  w = ws[(len(ws) - 1) // 2]
  same = next(
    (
      r
      for r in _of(series, 'teacher')
      if (r['num_steps'], r['w'], r.get('sampler')) == (num_steps, w, 'ddim')
    ),
    None,
  )
  reference = _reference(series, w)
  return places[num_steps, w], None if reference == same else reference, same


# Pictures.


def _cells(workdir: epath.Path, series: Series) -> tuple[list[Row], list[int], str]:
  """(what the page needs of every chosen row, [columns, rows] of a panel, a word on the pictures).

  Pictures are kept below a budget: fewer rows first, then smaller pictures.
  """
  rows = [r for places in series.values() for r in places.values()]
  pictures = [_pixels(workdir, r.get('cell')) for r in rows]
  side = max((max(p.shape[1:3]) for p in pictures if p is not None), default=0)
  for down, shrink in [(_DOWN, 1), (2, 1), (1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32)]:
    sprites = [None if p is None else _sprite(p, down, shrink) for p in pictures]
    if sum(len(s) for s in sprites if s) <= _PICTURE_BYTES:
      break
  keep = ('label', 'model', 'sampler', 'num_steps', 'w', 'round', 'network_calls', 'images')
  keep += ('fd', 'fd_teacher', 'rms_teacher', 'inception_score', 'accuracy')
  cells = [{**{k: r.get(k) for k in keep}, 'sprite': s} for r, s in zip(rows, sprites, strict=True)]
  if not any(sprites):
    return cells, [_ACROSS, down], 'No pictures were saved for the rows of this report.'
  note = f'Images 0 to {_ACROSS * down - 1} of each cell, at {side} pixels'
  note += (
    f', made {shrink} times smaller for this page.' if shrink > 1 else ', enlarged, unsmoothed.'
  )
  return cells, [_ACROSS, down], note


def _pixels(workdir: epath.Path, cell: Any) -> np.ndarray | None:
  """The first images [n, H, W, C] of a cell, or None."""
  if not isinstance(cell, str) or not re.fullmatch(r'\w[\w.,=+-]*', cell):
    return None  # not a plain file name
  path = workdir / 'evaluation' / 'cells' / f'{cell}.npz'
  try:
    if not storage.exists(path):
      return None
    with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as file:
      pixels = file['pixels'][: _ACROSS * _DOWN]
  except Exception:  # zipfile, zlib and numpy each have their own
    return None
  return pixels if pixels.ndim == 4 and pixels.dtype == np.uint8 and pixels.size else None


def _sprite(pixels: np.ndarray, down: int, shrink: int) -> str:
  """Base64 of one PNG with the pictures side by side, 10 across, between grey lines."""
  pixels = pixels[: _ACROSS * down, ..., : 3 if pixels.shape[-1] == 3 else 1]
  shrink = min(shrink, *pixels.shape[1:3])
  small = [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p).reduce(shrink) for p in pixels]
  width, height = small[0].size
  gap = max(1, max(width, height) // 16)
  size = _ACROSS * (width + gap) + gap, down * (height + gap) + gap
  image = Image.new(small[0].mode, size, 'grey')
  for i, picture in enumerate(small):
    row, column = divmod(i, _ACROSS)
    image.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
  file = io.BytesIO()
  image.save(file, 'png', optimize=True)
  return base64.b64encode(file.getvalue()).decode()


def _place(cells: Sequence[Row], row: Row | None) -> int | None:
  """Where the cell of this row stands in the list."""
  if row is None:
    return None
  keys = ('label', 'num_steps', 'w')
  return next(i for i, c in enumerate(cells) if all(c[k] == row[k] for k in keys))


def _round_cells(rounds: Sequence[Row], cells: Sequence[Row]) -> list[Row]:
  """[{name, cells: [[w, index]]}]: a round at its own number of steps, else at its largest."""
  found = []
  for entry in rounds:
    own = entry['card'].get('num_steps')
    by_w: dict[float, int] = {}
    order = sorted(
      (c['sampler'] == 'ddim', c['num_steps'] == own, c['num_steps'], i)
      for i, c in enumerate(cells)
      if c['round'] == entry['name'] and c['sprite']
    )
    for *_, i in order:
      by_w[cells[i]['w']] = i
    found.append({'name': entry['name'], 'cells': sorted(by_w.items())})
  return found


# Words and tables.


def _num(value: Any) -> str:
  """Three digits, and a dash for nothing."""
  if not _is_number(value):
    return '–' if value is None else str(value)
  return f'{value:.0f}' if isinstance(value, int) or abs(value) >= 1000 else f'{value:.3g}'


def _score(value: Any) -> str:
  """As `_num`, with the zeros at the end that a column of scores lines up by."""
  if not _is_number(value) or not 0.1 <= abs(value) < 100:
    return _num(value)
  return f'{value:.2f}' if abs(value) < 9.995 else f'{value:.1f}'


def _summary(series: Series) -> str:
  student, reference, same = _headline(series)
  if student is None:
    rows = (
      'Teacher rows are here, but no student yet' if series else 'Nothing has been measured yet'
    )
    return f'<p class="lead">{rows}. Run the evaluation, then write this report again.</p>'
  w = _num(student['w'])
  text = f'At w = {w} the student at {_steps(student)} has FD {_score(student.get("fd"))}'
  text += f' for {_calls(student)} a picture; '
  if reference:
    text += f'the teacher’s {_num(reference["num_steps"])}-step reference has FD '
    text += f'{_score(reference.get("fd"))} for {_calls(reference)}.'
  else:
    text += 'there is no longer teacher reference at this w to set beside it.'
  if same:
    text += f' The teacher cut to {_steps(same)} of DDIM has FD {_score(same.get("fd"))} for '
    text += f'{_calls(same)}.'
  else:
    text += ' The teacher was not measured at as few steps.'
  tiles = [('Student', student), ('Teacher reference', reference), ('Teacher, DDIM', same)]
  body = ''.join(
    f'<div class="tile"><span>{name}, {_steps(r)}</span><b>{html.escape(_score(r.get("fd")))}</b>'
    f'<span>FD, {html.escape(_calls(r))}</span></div>'
    for name, r in tiles
    if r
  )
  return f'<p class="lead">{html.escape(text)}</p><div class="tiles">{body}</div>'


def _steps(row: Row) -> str:
  return f'{_num(row["num_steps"])} step{"" if row["num_steps"] == 1 else "s"}'


def _calls(row: Row) -> str:
  calls = row.get('network_calls')
  if calls is None:
    return 'an unknown number of network calls'
  return f'{_num(calls)} network call{"" if calls == 1 else "s"}'


def _table_rows(series: Series) -> Iterable[tuple[str, int, float | None, dict[float, Row]]]:
  """(label, num_steps, network calls, {w: row}); calls at w = 0 may be half, so the most."""
  for label, places in series.items():
    for num_steps in sorted({n for n, _ in places}):
      by_w = {w: r for (n, w), r in places.items() if n == num_steps}
      calls = [r['network_calls'] for r in by_w.values() if r.get('network_calls') is not None]
      yield label, num_steps, max(calls, default=None), by_w


def _paper_table(series: Series) -> str:
  if not series:
    return '<p class="missing">No rows yet.</p>'
  ws = _ws(series)
  top = ''.join(f'<th colspan="2" scope="colgroup">w = {_num(w)}</th>' for w in ws)
  head = (
    '<thead><tr><th rowspan="2" scope="col">Model, sampler</th><th rowspan="2" scope="col">Steps'
    f'</th><th rowspan="2" scope="col">Calls</th>{top}</tr><tr>'
    + '<th scope="col" class="first">FD</th><th scope="col">IS</th>' * len(ws)
    + '</tr></thead>'
  )
  body, last = '', None
  for label, num_steps, calls, by_w in _table_rows(series):
    pairs = ''.join(
      f'<td class="first">{html.escape(_score(r.get("fd")))}</td>'
      f'<td class="soft">{html.escape(_score(r.get("inception_score")))}</td>'
      for r in (by_w.get(w, {}) for w in ws)
    )
    group = ' class="group"' if label != last else ''
    body += f'<tr{group}><th scope="row">{html.escape(label)}</th><td>{_num(num_steps)}</td>'
    body += f'<td class="soft">{_num(calls)}</td>{pairs}</tr>'
    last = label
  return f'<table class="numbers">{head}<tbody>{body}</tbody></table>'


def _time(time: Any, rounds: Sequence[Row]) -> str:
  spent = {f'round {r["name"]}': r['card'].get('seconds') for r in rounds}
  groups = [('Of the run', time if isinstance(time, Mapping) else {}), ('By round', spent)]
  text = ''
  for name, values in groups:
    values = {str(k): v for k, v in values.items() if _is_number(v)}
    if not values:
      continue
    most = max(*values.values(), 1e-9)
    bars = ''.join(
      f'<tr><th scope="row">{html.escape(k)}</th><td>{_duration(v)}</td>'
      f'<td class="bar"><i style="width:{100 * max(v, 0) / most:.1f}%"></i></td></tr>'
      for k, v in values.items()
    )
    text += f'<h3>{name}</h3><table class="bars"><tbody>{bars}</tbody></table>'
  return text or '<p class="missing">No times were recorded.</p>'


def _duration(seconds: float) -> str:
  if seconds < 100:
    return f'{seconds:.1f} s'
  minutes = seconds / 60
  return f'{minutes:.1f} min' if minutes < 100 else f'{minutes / 60:.1f} h'


def _details(config: Any, rounds: Sequence[Row]) -> str:
  text = _folded('Resolved config', config) if config is not None else ''
  for entry in rounds:
    if entry['card']:
      text += _folded(f'Card of {entry["name"]}', entry['card'])
  return text or '<p class="missing">No config and no cards were found.</p>'


def _folded(name: str, value: Any) -> str:
  text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
  return f'<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>'


# Plots: which curves stand together, and what is said of them.


def _plots(series: Series, rows: Sequence[Row]) -> str:
  chosen = [r for places in series.values() for r in places.values()]
  if not chosen:
    return '<p class="missing">No rows to plot yet.</p>'
  styles = {label: i % plots.STYLES for i, label in enumerate(series)}
  ws, counts = _ws(series), _values(_of(series, 'student') or chosen, 'num_steps')
  floors = [r.get('fd') or r.get('fd_held_out') for r in rows if r.get('model') == 'data']
  floor = next(filter(_positive, floors), None)
  images = _values(chosen, 'images')
  caption = f'{protocol_of(rows)}.'
  if images:
    caption += f' {_num(images[0])}' + (f' to {_num(images[-1])}' if images[1:] else '')
    caption += ' images a point.'
  text = _legend(styles, floor is not None)

  for column, name in (('fd', 'FD'), ('fd_teacher', 'FD to the teacher')):
    level = floor if column == 'fd' else None
    known = [v for v in (level, *(r.get(column) for r in chosen)) if _positive(v)]
    if not known:
      text += f'<h3>{name}</h3><p class="missing">No row has {column}.</p>'
      continue
    limits = plots.limits(known)
    shown: dict[str, list[str]] = {'steps': [], 'network calls': [], 'seconds': [], 'w': []}
    for w in ws:
      best = (_reference(series, w) or {}).get('fd') if column == 'fd' else None
      best = best if _positive(best) else None
      more = {'title': f'w = {_num(w)}', 'y': f'{name} (log)', 'limits': limits}
      for x, key in (('num_steps', 'steps'), ('network_calls', 'network calls')):
        lines = _lines(series, styles, column, x, 'w', w)
        more['ticks'] = _ticks(lines)
        label = {'steps': 'sampling steps', 'network calls': 'network calls a picture'}[key]
        shown[key].append(
          plots.curves(f'{column} {x} {w}', lines, x=label, log_x=True, flat=(best, level), **more)
        )
      lines = _lines(series, styles, column, 'seconds_per_image', 'w', w)
      if column == 'fd' and lines:
        more['ticks'] = None
        label = 'seconds a picture, drawing alone'
        shown['seconds'].append(
          plots.curves(f'seconds {w}', lines, x=label, log_x=True, flat=(best, level), **more)
        )
    for n in counts if len(ws) > 1 else ():
      lines = _lines(series, styles, column, 'w', 'num_steps', n)
      title = _steps({'num_steps': n})
      more = {'title': title, 'y': f'{name} (log)', 'limits': limits, 'flat': (None, level)}
      more['ticks'] = _ticks(lines)
      shown['w'].append(
        plots.curves(f'{column} w {n}', lines, x='guidance strength w', log_x=False, **more)
      )
    text += _figures(f'{name} against steps, for each w', shown['steps'], caption)
    if column == 'fd':
      text += _figures(f'{name} against network calls, for each w', shown['network calls'], caption)
      if shown['seconds']:
        text += _figures(f'{name} against seconds, for each w', shown['seconds'], caption)
      text += _trade(series, styles, counts, limits, caption)
    if shown['w']:
      text += _figures(f'{name} against w, for each number of steps', shown['w'], caption)
    else:
      text += f'<h3>{name} against w</h3>'
      text += f'<p class="missing">Only w = {_num(ws[0])} was measured.</p>'
  return text


def _trade(series: Series, styles: Mapping, counts: Sequence, limits: tuple, caption: str) -> str:
  """FD against the inception score: a curve goes through the strengths w, a plot is an N."""
  drawn = []
  for n in counts:
    lines = []
    for label, places in series.items():
      rows = [places[n, w] for w in sorted(w for steps, w in places if steps == n)]
      points = [
        (r['inception_score'], r['fd'])
        for r in rows
        if _positive(r.get('inception_score')) and _positive(r.get('fd'))
      ]
      if len(points) > 1:
        lines.append((styles[label], *zip(*points, strict=True)))
    if lines:
      more = {'title': _steps({'num_steps': n}), 'y': 'FD (log)', 'limits': limits, 'ticks': None}
      drawn.append(
        plots.curves(
          f'trade {n}', lines, x='inception score', log_x=False, flat=(None, None), **more
        )
      )
  if not drawn:
    return ''
  caption += ' A curve joins the strengths w from the least on.'
  return _figures('FD against the inception score over w, for each number of steps', drawn, caption)


def _lines(series: Series, styles: Mapping, column: str, x: str, by: str, fixed: float) -> list:
  """[(style, xs, ys)] of every curve where the place's `by` is `fixed` and the value is known."""
  lines = []
  for label, places in series.items():
    rows = [r for r in places.values() if r[by] == fixed]
    points = sorted(
      (r[x], r[column]) for r in rows if r.get(x) is not None and _positive(r.get(column))
    )
    if points:
      lines.append((styles[label], *zip(*points, strict=True)))
  return lines


def _ticks(lines: Iterable) -> dict[float, str]:
  return {v: _num(v) for v in sorted({v for _, xs, _ in lines for v in xs})}


def _positive(value: Any) -> bool:
  return _is_number(value) and value > 0


def _legend(styles: Mapping[str, int], has_floor: bool) -> str:
  """Each curve's colour, mark and dash, once for all plots."""
  items = [(label, plots.sample(i)) for label, i in styles.items()]
  items.append(('teacher’s reference (most steps)', plots.sample(flat=0)))
  if has_floor:
    items.append(('training images against held-out images', plots.sample(flat=1)))
  body = ''.join(f'<li>{svg}{html.escape(label)}</li>' for label, svg in items)
  return f'<ul class="legend">{body}</ul>'


def _figures(name: str, drawn: Iterable[str], caption: str) -> str:
  return (
    f'<figure><h3>{html.escape(name)}</h3><div class="multiples">{"".join(drawn)}</div>'
    f'<figcaption>{html.escape(caption)}</figcaption></figure>'
  )


def _losses(rounds: Sequence[Row]) -> str:
  drawn, body = [], ''
  for entry in rounds:
    log, card = entry['log'], entry['card']
    points = [
      (e['step'], e['loss']) for e in log if _is_number(e.get('step')) and _is_number(e.get('loss'))
    ]
    rates = [e['updates_per_second'] for e in log if _is_number(e.get('updates_per_second'))]
    takes_w = card.get('takes_w')
    ends = f'{_num(card.get("w_min"))} to {_num(card.get("w_max"))}' if takes_w else ''
    facts = [
      entry['name'],
      card.get('stage'),
      card.get('num_steps'),
      ends or _word(takes_w),
      card.get('parameters'),
      points[-1][0] if points else None,
      points[-1][1] if points else None,
      float(np.median(rates)) if rates else None,
    ]
    body += '<tr>' + ''.join(f'<td>{html.escape(_num(f))}</td>' for f in facts) + '</tr>'
    if points:
      drawn.append(plots.loss(entry['name'], points))
  if not rounds:
    return '<p class="missing">No round has been trained in this workdir.</p>'
  names = (
    'Round',
    'Stage',
    'Steps N',
    'w',
    'Parameters',
    'Updates',
    'Last loss',
    'Updates/s (median)',
  )
  head = ''.join(f'<th scope="col">{n}</th>' for n in names)
  text = f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
  text += f'<tbody>{body}</tbody></table></div>'
  if not drawn:
    return text + '<p class="missing">No losses were logged.</p>'
  caption = 'Training loss as logged (thin) and its running mean. Losses of different stages weigh '
  caption += 'errors differently: compare along a curve, not between rounds.'
  return text + _figures('Loss, round by round', drawn, caption)


def _word(takes_w: Any) -> Any:
  return 'no w' if takes_w is False else None
