"""Tests of the labels of series: a label names what differs between series, and nothing else."""

from gdistill.evaluation.report import grouping


def test_guided_is_named_only_where_both_exist():
  row = {'model': 'teacher', 'sampler': 'ddim', 'num_steps': 4, 'w': 1.0, 'guided': True}
  assert list(grouping.series([row])) == ['teacher, DDIM']
  both = grouping.series([row, {**row, 'guided': False}])
  assert list(both) == ['teacher, DDIM, guided', 'teacher, DDIM, unguided']


def test_the_floor_is_called_what_it_is():
  row = {'model': 'floor', 'stage': 'teacher', 'sampler': 'ddim', 'num_steps': 64, 'w': 1.0}
  assert list(grouping.series([row])) == ['teacher from other seeds, DDIM']
