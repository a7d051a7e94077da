"""Tests of curves: one coordinate fixed, and no values that a logarithmic axis cannot show."""

import fake_run

from gdistill.evaluation.report import curves
from gdistill.evaluation.report import grouping


def test_curves_hold_one_place_fixed_and_skip_what_is_unknown():
  series = grouping.series(grouping.clean(fake_run.rows(ws=(0.0, 1.0), steps=(1, 2, 4))))
  series['student, DDIM'][2, 1.0]['fd'] = None
  series['teacher, DDIM'][2, 1.0]['fd'] = 0.0
  styles = {label: i for i, label in enumerate(series)}
  column = curves.Column('fd', 'FD', series, styles, (1, 100), None)
  (i, steps, fds), _, teacher, _ = curves.lines(column, 'num_steps', 'w', 1.0)
  assert teacher[:2] == (2, (1, 4, 256))
  assert (i, steps) == (0, (1, 4))
  assert fds == tuple(fake_run.fd('student', 'ddim', n, 1.0) for n in steps)


def test_a_curve_of_fd_against_the_score_goes_through_the_strengths(monkeypatch):
  drawn = {}
  keep = lambda name, lines, **more: drawn.setdefault(name, lines) and ''
  monkeypatch.setattr(curves.plots, 'curves', keep)
  rows = [r for r in fake_run.rows() if r['sampler'] == 'ddim' and r['stage'] == 'progressive']
  series = grouping.series(rows)
  styles = dict.fromkeys(series, 'a style')
  column = curves.Column('fd', 'FD', series, styles, (1, 100), None)
  assert len(curves.against_score(column, [1, 4])) == 2
  assert sorted(drawn) == ['trade 1', 'trade 4']
  [(style, scores, fds)] = drawn['trade 4']
  expected = [fake_run.fd('student', 'ddim', 4, w) for w in fake_run.WS]
  assert style == 'a style' and list(fds) == expected
  assert list(scores) == [9.2 - fd / 40 for fd in expected]
