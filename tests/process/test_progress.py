"""Tests of the progress display: lines and remaining time."""

import pytest

from gdistill.process import progress


@pytest.fixture
def clock(monkeypatch):
  """Replaces the clock by a list whose number the test advances."""
  now = [1000.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  return now


def test_a_line_says_how_long_the_rest_takes_at_the_speed_since_the_start(clock, capsys):
  with progress.Progress('teacher', 900, start=300) as bar:
    clock[0] += 60  # 120 updates in 60 s
    bar.update(420, loss=0.25)
  assert capsys.readouterr().err == 'teacher: 420/900 loss=0.25 0:04:00 left\n'


def test_lines_come_every_ten_seconds_and_at_the_end(clock, capsys):
  with progress.Progress('drawing', 40) as bar:
    for done in range(1, 41):
      clock[0] += 1
      bar.update(done)
  assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [
    '11/40', '22/40', '33/40', '40/40',
  ]  # fmt: skip


def test_nothing_is_promised_before_the_first_update_and_after_the_last(clock, capsys):
  with progress.Progress('teacher', 5, start=5) as bar:
    clock[0] += 11
    bar.update(5)
  assert capsys.readouterr().err == 'teacher: 5/5\n'
