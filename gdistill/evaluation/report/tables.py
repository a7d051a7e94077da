"""Makes the main table of the report: a line for each model and number of steps, FD and IS at each
w.
"""

import html
from collections.abc import Iterator, Sequence
from typing import Any

from gdistill.evaluation.report import formats
from gdistill.evaluation.report import grouping
from gdistill.evaluation.report import summary


def lines(
  series: grouping.Series,
) -> Iterator[tuple[str, int, float | None, dict[float, grouping.Row]]]:
  """Yields each line of the table as (label, num_steps, network calls, {w: row of metrics}).

  The network calls of a line are the largest number of calls over all w, because a guided teacher
  may need only half of the calls at w = 0.
  """
  for label, places in series.items():
    for num_steps in sorted({n for n, _ in places}):
      by_w = {w: r for (n, w), r in places.items() if n == num_steps}
      calls = [r['network_calls'] for r in by_w.values() if r.get('network_calls') is not None]
      yield label, num_steps, max(calls, default=None), by_w


def by_strength(series: grouping.Series) -> dict[str, Any]:
  """Returns the page's table: 'ws' lists the strengths w, and each of 'lines' has in 'scores' a
  pair (FD, IS) for each w.
  """
  ws, found, last = grouping.strengths(series), [], None
  for label, num_steps, calls, by_w in lines(series):
    rows = (by_w.get(w, {}) for w in ws)
    found.append({
      'label': label,
      'starts_group': label != last,
      'num_steps': num_steps,
      'calls': calls,
      'scores': [(r.get('fd'), r.get('inception_score')) for r in rows],
    })  # fmt: skip
    last = label
  return {'ws': ws, 'lines': found}


def markdown(rows: Sequence[grouping.Row]) -> str:
  """Returns the page's table as Markdown, followed by a sentence that says how FD was measured."""
  series = grouping.series(grouping.clean(rows))
  ws = grouping.strengths(series)
  head = ['model, sampler', 'steps', 'calls', *(f'w = {formats.short(w)}: FD / IS' for w in ws)]
  cells = [head, ['---'] + ['---:'] * (len(head) - 1)]
  for label, num_steps, calls, by_w in lines(series):
    pairs = [
      f'{formats.score(r.get("fd"))} / {formats.score(r.get("inception_score"))}'
      if r
      else formats.DASH
      for r in (by_w.get(w) for w in ws)
    ]
    cells.append([label, formats.short(num_steps), formats.short(calls), *pairs])
  # "|" and "<" are escaped: Markdown reads "|" in a table as the end of a cell, and "<" as HTML
  text = [[html.escape(cell).replace('|', '\\|') for cell in line] for line in cells]
  table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in text)
  return f'{table}\n\n{summary.protocol_of(rows)}.\n'
