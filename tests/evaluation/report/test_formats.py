"""Tests of printed numbers: three digits, and a dash for an unknown value."""

import pytest

from gdistill.evaluation.report import formats


@pytest.mark.parametrize(
  'value, short, score',
  [
    (None, '–', '–'),
    (0.01234, '0.0123', '0.0123'),
    (0.5, '0.5', '0.50'),
    (9.994, '9.99', '9.99'),
    (9.996, '10', '10.0'),
    (99.94, '99.9', '99.9'),
    (123.4, '123', '123'),
    (1234.5, '1234', '1234'),
    (612345, '612345', '612345'),
    (-2.0, '-2', '-2.00'),
    ('text', 'text', 'text'),
    (True, 'True', 'True'),
  ],
)
def test_a_number_has_three_digits(value, short, score):
  assert (formats.short(value), formats.score(value)) == (short, score)


def test_only_finite_numbers_are_numbers():
  assert all(formats.is_number(v) for v in (0, -1.5))
  assert not any(formats.is_number(v) for v in (None, True, '1', float('nan'), float('inf')))
  assert [formats.is_positive(v) for v in (1, 0, -1, None)] == [True, False, False, False]


def test_a_single_step_and_a_single_call_are_singular():
  assert (formats.steps(1), formats.steps(4)) == ('1 step', '4 steps')
  assert (formats.calls(1), formats.calls(8)) == ('1 network call', '8 network calls')
  assert formats.calls(None) == 'an unknown number of network calls'


def test_durations_change_their_unit():
  assert formats.duration(99.94) == '99.9 s'
  assert formats.duration(150) == '2.5 min'
  assert formats.duration(7200) == '2.0 h'
