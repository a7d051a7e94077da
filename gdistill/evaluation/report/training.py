"""The training section of the report page: losses of each round, plots of losses, time spent."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gdistill.evaluation.report import formats
from gdistill.evaluation.report import plots


def losses(rounds: Sequence[dict[str, Any]]) -> dict[str, list]:
  """Returns {'lines': [a dict of numbers about each round, such as the last loss], 'drawn': [an SVG
  loss plot of each round that logged losses]}.
  """
  lines, drawn = [], []
  for entry in rounds:
    log, card = entry['log'], entry['card']
    points = [
      (e['step'], e['loss'])
      for e in log
      if formats.is_number(e.get('step')) and formats.is_number(e.get('loss'))
    ]
    rates = [e['updates_per_second'] for e in log if formats.is_number(e.get('updates_per_second'))]
    keys = ('stage', 'num_steps', 'takes_w', 'w_min', 'w_max', 'parameters')
    lines.append({
      'name': entry['name'],
      **{k: card.get(k) for k in keys},
      'updates': points[-1][0] if points else None,
      'last_loss': points[-1][1] if points else None,
      'updates_per_second': float(np.median(rates)) if rates else None,
    })  # fmt: skip
    if points:
      drawn.append(plots.loss(entry['name'], points))
  return {'lines': lines, 'drawn': drawn}


def times(seconds: Any, rounds: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """Returns two lists of bars: 'run' has the time of each activity of the run, and 'rounds' has the
  time of each round.

  A bar is {'name', 'seconds', 'percent'}; 100 percent is the longest bar of the same list.
  `seconds` is the content of the run's time.json, {activity: seconds}.
  """
  spent = {f'round {r["name"]}': r['card'].get('seconds') for r in rounds}
  return {'run': _bars(seconds if isinstance(seconds, Mapping) else {}), 'rounds': _bars(spent)}


def _bars(seconds: Mapping) -> list[dict[str, Any]]:
  known = {str(k): v for k, v in seconds.items() if formats.is_number(v)}
  most = max(*known.values(), 1e-9) if known else 1.0
  return [{'name': k, 'seconds': v, 'percent': 100 * max(v, 0) / most} for k, v in known.items()]
