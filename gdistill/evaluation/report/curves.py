"""Makes the curves of the report page: which rows form a curve, and which curves share a plot."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gdistill.evaluation.report import formats
from gdistill.evaluation.report import grouping
from gdistill.evaluation.report import plots

COLUMNS = {'fd': 'FD', 'fd_teacher': 'FD to the teacher'}


@dataclasses.dataclass(frozen=True)
class Column:
  """One metric, FD or FD to the teacher, and the settings that all plots of the metric share."""

  key: str  # name of the metric in a row: 'fd' or 'fd_teacher'
  name: str  # name of the metric on the page: 'FD' or 'FD to the teacher'
  series: grouping.Series
  styles: Mapping[str, int]  # {label of a series: index of its line style}
  limits: tuple[float, float]  # limits of the y axis: (lowest, highest)
  floor: float | None  # FD between training and held-out images, or None

  @property
  def y(self) -> dict[str, Any]:
    """Returns the label and the limits of the y axis, as arguments of `plots.curves`."""
    return {'y': f'{self.name} (log)', 'limits': self.limits}


def figures(series: grouping.Series, rows: Sequence[grouping.Row]) -> dict[str, Any] | None:
  """Returns the template values for the page's plots, or None if there is no row to plot.

  - 'legend' holds samples of the line styles, made by `_legend`.
  - 'ws' lists every guidance strength w that was measured.
  - 'images' lists the numbers of sampled images on which the rows' metrics were measured.
  - 'columns' lists a dict {key, name, drawn} for each metric in COLUMNS.
  - 'drawn' holds the plots of a metric, made by `_plots`, or None without a known value.
  """
  chosen = grouping.rows_of(series)
  if not chosen:
    return None
  styles = {label: i % plots.STYLES for i, label in enumerate(series)}
  floors = [r.get('fd') or r.get('fd_held_out') for r in rows if r.get('model') == 'data']
  floor = next(filter(formats.is_positive, floors), None)
  counts = grouping.values(grouping.rows_of(series, 'student') or chosen, 'num_steps')
  columns = []
  for key, name in COLUMNS.items():
    level = floor if key == 'fd' else None
    known = [v for v in (level, *(r.get(key) for r in chosen)) if formats.is_positive(v)]
    shown = {'key': key, 'name': name, 'drawn': None}
    if known:
      shown['drawn'] = _plots(Column(key, name, series, styles, plots.limits(known), level), counts)
    columns.append(shown)
  return {
    'legend': _legend(styles, floor is not None),
    'images': grouping.values(chosen, 'images'),
    'ws': grouping.strengths(series),
    'columns': columns,
  }


def _legend(styles: Mapping[str, int], has_floor: bool) -> dict[str, Any]:
  """Returns SVG samples of the line styles: curves, teacher with most steps, held-out images."""
  return {
    'curves': [{'label': label, 'svg': plots.sample(i)} for label, i in styles.items()],
    'reference': plots.sample(flat=0),
    'floor': plots.sample(flat=1) if has_floor else None,
  }


def _plots(column: Column, counts: Sequence[int]) -> dict[str, list[str]]:
  """Returns {quantity on the x axis: list of SVG plots, which may be empty} of one metric.

  Plots against network calls, seconds and the inception score are made only for the metric FD.
  """
  is_fd = column.key == 'fd'
  several = len(grouping.strengths(column.series)) > 1
  return {
    'steps': against_cost(column, 'num_steps', 'sampling steps'),
    'calls': against_cost(column, 'network_calls', 'network calls per image') if is_fd else [],
    'seconds': against_seconds(column) if is_fd else [],
    'score': against_score(column, counts) if is_fd else [],
    'w': against_strength(column, counts) if several else [],
  }


def against_cost(column: Column, x: str, label: str) -> list[str]:
  """Returns a plot for each w: the metric against sampling steps or calls, as `x` selects."""
  drawn = []
  for w in grouping.strengths(column.series):
    found = lines(column, x, 'w', w)
    drawn.append(_at_strength(column, w, found, x, label, _ticks(found)))
  return drawn


def against_seconds(column: Column) -> list[str]:
  """Returns a plot for each w with known sampling times: the metric against seconds per image."""
  drawn = []
  for w in grouping.strengths(column.series):
    found = lines(column, 'seconds_per_image', 'w', w)
    if found:
      label = 'seconds per image, sampling only'
      drawn.append(_at_strength(column, w, found, 'seconds', label, None))
  return drawn


def _at_strength(
  column: Column,
  w: float,
  found: Sequence[plots.Line],
  x: str,
  label: str,
  ticks: Mapping[float, str] | None,
) -> str:
  """Returns the plot of the lines at one w; for FD, flat lines show teacher and held-out images."""
  best = (grouping.reference(column.series, w) or {}).get('fd') if column.key == 'fd' else None
  return plots.curves(
    f'{column.key} {x} {w}',
    found,
    title=f'w = {formats.short(w)}',
    x=label,
    log_x=True,
    ticks=ticks,
    flat=(best if formats.is_positive(best) else None, column.floor),
    **column.y,
  )


def against_strength(column: Column, counts: Sequence[int]) -> list[str]:
  """Returns a plot for each number of steps: the metric against the guidance strength w."""
  drawn = []
  for n in counts:
    found = lines(column, 'w', 'num_steps', n)
    drawn.append(
      plots.curves(
        f'{column.key} w {n}',
        found,
        title=formats.steps(n),
        x='guidance strength w',
        log_x=False,
        ticks=_ticks(found),
        flat=(None, column.floor),
        **column.y,
      )
    )
  return drawn


def against_score(column: Column, counts: Sequence[int]) -> list[str]:
  """Returns a plot for each number of steps: FD against the inception score.

  A curve joins the points of one model in ascending order of w; a curve of one point is left out.
  """
  drawn = []
  for n in counts:
    found = []
    for label, places in column.series.items():
      rows = [places[n, w] for w in sorted(w for steps, w in places if steps == n)]
      points = [
        (r['inception_score'], r['fd'])
        for r in rows
        if formats.is_positive(r.get('inception_score')) and formats.is_positive(r.get('fd'))
      ]
      if len(points) > 1:
        found.append((column.styles[label], *zip(*points, strict=True)))
    if found:
      drawn.append(
        plots.curves(
          f'trade {n}',
          found,
          title=formats.steps(n),
          x='inception score',
          log_x=False,
          ticks=None,
          flat=(None, None),
          **column.y,
        )
      )
  return drawn


def lines(column: Column, x: str, by: str, fixed: float) -> list[plots.Line]:
  """Returns a line for each series, through the points (row[x], metric) of the series' rows.

  A row is used only if row[by] == fixed, row[x] is known and the metric is a positive number.
  """
  found = []
  for label, places in column.series.items():
    rows = [r for r in places.values() if r[by] == fixed]
    points = sorted(
      (r[x], r[column.key])
      for r in rows
      if r.get(x) is not None and formats.is_positive(r.get(column.key))
    )
    if points:
      found.append((column.styles[label], *zip(*points, strict=True)))
  return found


def _ticks(found: Iterable[plots.Line]) -> dict[float, str]:
  """Returns the ticks of the x axis, {x: text}: one tick at every x of the lines' points."""
  return {v: formats.short(v) for v in sorted({v for _, xs, _ in found for v in xs})}
