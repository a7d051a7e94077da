"""The top of the report page: FD of a student and of two teacher samplings, and how FD was
measured.
"""

import math
from collections.abc import Sequence
from typing import Any

from gdistill.evaluation.report import formats
from gdistill.evaluation.report import grouping

PROTOCOL = (
  'FD = Fréchet distance in the features of a small classifier trained on the training images: '
  'comparable within this report only, not FID'
)
_OF_CLASSIFIER = ('classifier', None)  # rows without 'extractor' were measured with the classifier
_SHOWN = ('w', 'num_steps', 'network_calls', 'fd')


def headline(series: grouping.Series) -> dict[str, dict[str, Any] | None]:
  """Returns {'student': row, 'reference': row, 'same_steps': row}, which sum up a run.

  A row is {w, num_steps, network_calls, fd}, or None if nothing was measured there.

  - 'student' is the first student in `series`, at the measured number of steps nearest to 4, and at
    the median of the strengths w that were measured with this number of steps.
  - 'reference' is the teacher at the student's w with the most steps.
  - 'same_steps' is the teacher at the student's w and number of steps, sampled by DDIM.
  """
  rows = dict(zip(('student', 'reference', 'same_steps'), _headline(series), strict=True))
  return {k: {c: r.get(c) for c in _SHOWN} if r else None for k, r in rows.items()}


def _headline(series: grouping.Series) -> tuple[grouping.Row | None, ...]:
  label = next((k for k, p in series.items() if next(iter(p.values()))['model'] == 'student'), None)
  if label is None:
    return None, None, None
  places = series[label]
  num_steps = min((n for n, _ in places), key=lambda n: (abs(math.log2(n / 4)), n))
  ws = sorted(w for n, w in places if n == num_steps)
  w = ws[(len(ws) - 1) // 2]
  same_steps = next(
    (
      r
      for r in grouping.rows_of(series, 'teacher')
      if (r['num_steps'], r['w'], r.get('sampler')) == (num_steps, w, 'ddim')
    ),
    None,
  )
  reference = grouping.reference(series, w)
  return places[num_steps, w], None if reference == same_steps else reference, same_steps


def protocol_of(rows: Sequence[grouping.Row]) -> str:
  """Returns a sentence, without the full stop, that says how the FD of `rows` was measured."""
  row = next((r for r in rows if r.get('model') != 'data'), {})
  if row.get('extractor') in _OF_CLASSIFIER:
    return PROTOCOL
  count = row.get('reference_images')
  return (
    f'FD = {row.get("distance")}, a Fréchet distance in the features of {row["extractor"]} '
    f'(weights {row.get("extractor_digest")}; {row.get("resize")}) to {formats.short(count)} '
    f'pictures of {row.get("reference_set")}'
  )
