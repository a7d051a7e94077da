"""Writes the HTML report of a run: fills page templates with values from files in the workdir."""

import json
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
from etils import epath

from gdistill.evaluation.report import curves
from gdistill.evaluation.report import files
from gdistill.evaluation.report import formats
from gdistill.evaluation.report import grouping
from gdistill.evaluation.report import sprites
from gdistill.evaluation.report import summary
from gdistill.evaluation.report import tables
from gdistill.evaluation.report import training
from gdistill.rounds import classes
from gdistill.workdir import storage


def write(workdir: epath.PathLike) -> epath.Path:
  """Writes WORKDIR/report/index.html and returns its path; the page says which data are missing."""
  workdir = storage.path(workdir)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('gdistill.evaluation.report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  functions = ('calls', 'duration', 'indented', 'score', 'short', 'steps')
  environment.filters |= {name: getattr(formats, name) for name in functions}
  page = environment.get_template('page.html').render(_values(workdir))
  target = workdir / 'report' / 'index.html'
  storage.write_bytes(target, page.encode('utf-8', 'backslashreplace'))
  return target


def _values(workdir: epath.Path) -> dict[str, Any]:
  """Returns {name: value} for the HTML templates, computed from the files in the workdir."""
  # data.json holds metrics of real images: the values that a perfect model would reach
  rows = [
    r
    for name in ('data', 'metrics')
    for r in grouping.clean(files.json_or_none(workdir / 'report' / f'{name}.json'))
  ]
  rounds = files.rounds(workdir)
  series = grouping.series(rows)
  pictures = sprites.sprites(workdir, series)
  unknown = {c for r in rows for c in r} - set(grouping.COLUMNS)
  # a column whose value is equal in all rows is printed once, below the table of all rows
  shared = {c: rows[0].get(c) for c in sorted(unknown) if len({str(r.get(c)) for r in rows}) == 1}
  columns = [c for c in grouping.COLUMNS if any(c in r for r in rows)]
  columns += sorted(unknown - shared.keys())
  return {
    'name': workdir.name,
    'headline': summary.headline(series),
    'protocol': summary.protocol_of(rows),
    'sprites': pictures,
    'classes': _classes(rounds),
    'table': tables.by_strength(series),
    'shared': list(shared.items()),
    'plots': curves.figures(series, rows),
    'losses': training.losses(rounds),
    'times': training.times(files.json_or_none(workdir / 'time.json'), rounds),
    'config': files.json_or_none(workdir / 'config.json'),
    'rounds': rounds,
    'data': _script_data(rows, columns, series, pictures, rounds),
  }


def _classes(rounds: Sequence[dict[str, Any]]) -> list[str]:
  """Returns the class names of the newest round by number; [] for prompts or numbers only."""
  cards = [r['card'] for r in rounds if r['card']]
  card = cards[-1] if cards else {}
  text = isinstance(card.get('latents'), dict) and card['latents'].get('text')
  named = isinstance(card.get('class_names'), list) and not text
  return list(classes.names_of(card)) if named else []


def _script_data(
  rows: Sequence[grouping.Row],
  columns: Sequence[str],
  series: grouping.Series,
  pictures: sprites.Sprites,
  rounds: Sequence[dict[str, Any]],
) -> markupsafe.Markup:
  """Returns the JSON text for the <script> element from which script.js reads its data."""
  cells = pictures.cells
  references = [
    [w, sprites.index_of(cells, grouping.reference(series, w))] for w in grouping.strengths(series)
  ]
  data = {
    'columns': columns,
    'rows': rows,
    'cells': cells,
    'across': [sprites.ACROSS, pictures.down],
    'references': references,
    'rounds': sprites.of_rounds(rounds, cells),
  }
  text = json.dumps(data, allow_nan=False)
  # "<" is escaped, because "</script>" in a string would end the <script> element
  return markupsafe.Markup(text.replace('<', '\\u003c'))  # noqa: S704
