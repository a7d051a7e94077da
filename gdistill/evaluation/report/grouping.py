"""Cleans the measured rows of the report and groups rows as series, by model, stage and sampler."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gdistill.evaluation.report import formats

Row = dict[str, Any]
# {label of a series: {(num_steps, w): the row of metrics measured at this point}}
Series = dict[str, dict[tuple[int, float], Row]]

COLUMNS = [
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


def clean(rows: Any) -> list[Row]:
  """Returns the entries of `rows` that are dicts; in numeric columns, non-numbers become None."""
  cleaned = []
  for row in rows if isinstance(rows, Sequence) else ():
    if isinstance(row, Mapping):
      row = {str(k): _plain(v) for k, v in row.items()}
      numbers = (c for c in COLUMNS if c not in _TEXT and c in row)
      cleaned.append({**row, **{c: row[c] if formats.is_number(row[c]) else None for c in numbers}})
  return cleaned


def _plain(value: Any) -> Any:
  """Returns `value` in a form that JSON can store: NaN and infinity become None, lists and dicts
  become text.
  """
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def series(rows: Iterable[Row]) -> Series:
  """Returns {label: {(num_steps, w): row}}, one series per model, stage and sampler.

  Series of students come first. If several rows of a series have the same (num_steps, w), only the
  last of these rows is returned. A model that was measured both with and without guidance has two
  series, whose labels end with 'guided' and 'unguided'.
  """
  rows = [r for r in rows if r.get('model') != 'data' and r.get('w') is not None]
  rows = [r for r in rows if (r.get('num_steps') or 0) > 0]
  curve, both = ('model', 'stage', 'sampler'), set()
  seen: dict[tuple, Any] = {}
  for r in rows:
    place = tuple(r.get(c) for c in (*curve, 'num_steps', 'w', 'round', 'grid'))
    if seen.setdefault(place, r.get('guided')) != r.get('guided'):
      both.add(place[:3])
  found: Series = {}
  for r in rows:
    label = _label(r)
    if tuple(r.get(c) for c in curve) in both:
      label += ', guided' if r.get('guided') else ', unguided'
    found.setdefault(label, {})[r['num_steps'], r['w']] = {**r, 'label': label}
  return dict(sorted(found.items(), key=_order))


def _label(row: Row) -> str:
  after = '' if row.get('stage') in (row.get('model'), 'progressive', None) else row['stage']
  model = row.get('model')
  if model == 'floor':  # the teacher, sampled from other seeds than the reference row
    model, after = 'teacher from other seeds', ''
  sampler = _SAMPLERS.get(row.get('sampler'), row.get('sampler'))
  return f'{model}{f" after {after}" if after else ""}, {sampler}'


def _order(item: tuple[str, dict]) -> tuple:
  label, places = item
  row = next(iter(places.values()))
  return row.get('model') != 'student', ' after ' in label, row.get('sampler') != 'ddim', label


def rows_of(found: Series, model: str | None = None) -> list[Row]:
  """Returns the rows of all series, or, if `model` is given, only the rows of this model."""
  rows = (r for places in found.values() for r in places.values())
  return [r for r in rows if model in (None, r.get('model'))]


def values(rows: Iterable[Row], column: str) -> list:
  """Returns the distinct known values in a column of the rows, in ascending order."""
  return sorted({r[column] for r in rows if r.get(column) is not None})


def strengths(found: Series) -> list[float]:
  """Returns the guidance strengths w of all rows in the series, in ascending order."""
  return sorted({w for places in found.values() for _, w in places})


def reference(found: Series, w: float) -> Row | None:
  """Returns the teacher's row at strength w with the most sampling steps; of two rows with equally
  many steps, the row sampled by DDIM is returned.
  """
  rows = [r for r in rows_of(found, 'teacher') if r['w'] == w]
  return max(rows, key=lambda r: (r['num_steps'], r.get('sampler') == 'ddim'), default=None)
