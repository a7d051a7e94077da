"""gdistill table: prints metrics of several files as one table, if all have the same protocol."""

import json
import pathlib
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import exit_codes

_FIGURES = (
  'fd', 'fd_teacher', 'sfid', 'inception_score', 'kid', 'precision', 'recall', 'clip_score',
  'accuracy',
)  # fmt: skip
_PLACE = ('model', 'stage', 'sampler', 'num_steps', 'w', 'network_calls', 'images_set')


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill table',
    description='Prints the figures of metrics.json files, and of the files that gdistill evaluate '
    '--images --out writes, as one Markdown table. Figures that were made under different '
    'protocols are refused.',
  )
  p.add_argument(
    'files', nargs='+', metavar='FILE', help='JSON file with one row of figures or a list of rows'
  )
  p.add_argument(
    '--mixed',
    action='store_true',
    help='print figures of different protocols too; the lines below the table name the differences',
  )
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill import errors
  from gdistill.evaluation import protocol

  rows = []
  for name in args.files:
    try:
      found = json.loads(pathlib.Path(name).read_bytes())
    except (OSError, ValueError, RecursionError) as e:
      raise errors.DataError(
        f'{name} is not readable JSON ({errors.brief(e)}); give the path of '
        'report/metrics.json of an evaluated run'
      ) from e
    found = found if isinstance(found, list) else [found]
    if not found or not all(isinstance(r, dict) and 'fd' in r for r in found):
      raise errors.DataError(
        f'{name} has no rows of metrics; give the path of report/metrics.json of an evaluated run'
      )
    # Rows of real images are left out of the table: real images have no sampler, steps or w.
    found = [r for r in found if r.get('model') != 'data']
    if not found:
      raise errors.DataError(
        f'{name} has metrics of real images only; give the path of report/metrics.json of an '
        'evaluated run'
      )
    rows += [{'file': name, **r} for r in found]
  differ = protocol.differences(rows)
  if not args.mixed:
    protocol.check(rows)
  drawn = [r for r in rows if r.get('fd_teacher') is not None]
  targets = {(r.get('teacher_checkpoint'), r.get('reference_steps')) for r in drawn}
  if len(targets) > 1:
    rows = [{k: v for k, v in r.items() if k != 'fd_teacher'} for r in rows]
  print(_markdown(rows))
  if len(targets) > 1:
    print('\nfd_teacher is left out: it measures the distance to the images of different teachers.')
  for key, values in differ.items():
    print(f'\n{key} differs: {"; ".join(map(str, values))}.')
  return 0


def _markdown(rows: Sequence[dict]) -> str:
  files = len({r['file'] for r in rows}) > 1
  columns = [*(['file'] if files else []), *_PLACE, *_FIGURES]
  columns = [c for c in columns if any(r.get(c) is not None for r in rows)]
  lines = [
    columns,
    ['---' if c in ('file', *_PLACE[:3], 'images_set') else '---:' for c in columns],
  ]
  lines += [[_cell(r.get(c)) for c in columns] for r in rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cell(value: object) -> str:
  if isinstance(value, float):
    return f'{value:.4g}'
  return '–' if value is None else str(value).replace('|', '\\|')
