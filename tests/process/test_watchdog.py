"""Tests of the watchdog: its limits, the stacks that it writes, and the exit code."""

import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gdistill.process import interrupt
from gdistill.process import watchdog

ROOT = pathlib.Path(__file__).parents[2]
STUCK = """
import sys, threading, time
from gdistill.process import interrupt, watchdog
folder, kind, disk = sys.argv[1:]

def stuck_here():
  time.sleep(60)

if disk == 'stuck':
  watchdog._WRITING = 0.3
  watchdog.storage.write_bytes = lambda *args: time.sleep(60)
with watchdog.Watchdog(folder, 1.0, process=3) as dog, interrupt.Interrupt(dog=dog) as stop:
  threading.Thread(target=stuck_here, daemon=True).start()
  with getattr(stop, kind)():
    for _ in range(20):
      stop.check()
      time.sleep(0.01)
    print('stuck', flush=True)
    while True:
      stop.check(moved=False)
      time.sleep(0.01)
"""


def run(folder, kind='steady', disk='fine'):
  child = subprocess.Popen(
    [sys.executable, '-c', STUCK, str(folder), kind, disk], cwd=ROOT, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  assert child.stdout.readline().strip() == 'stuck'
  return child, time.monotonic()


def test_who_does_not_move_leaves_with_134_and_the_stacks_of_all_threads(tmp_path):
  child, began = run(tmp_path)
  lines = child.communicate(timeout=30)[1]
  assert child.returncode == 134 and 0.7 < time.monotonic() - began < 5.0
  assert lines.startswith('gdistill: no progress for 1 s, so') and lines.count('\n') == 1
  stacks = (tmp_path / 'stacks-3.txt').read_text()
  assert str(tmp_path / 'stacks-3.txt') in lines
  assert 'stuck_here' in stacks and '<module>' in stacks and 'no progress' in stacks


def test_a_disk_that_is_stuck_does_not_hold_it_back(tmp_path):
  child, began = run(tmp_path, disk='stuck')
  lines = child.communicate(timeout=30)[1]
  assert child.returncode == 134 and time.monotonic() - began < 6.0
  assert 'stuck_here' in lines and 'the stacks of all threads are above; repeat' in lines


def test_what_takes_its_time_is_given_six_times_as_much(tmp_path):
  child, began = run(tmp_path, 'patient')
  child.communicate(timeout=30)
  assert child.returncode == 134 and 5.5 < time.monotonic() - began < 12.0


def test_a_process_that_was_suspended_is_not_stuck(tmp_path):
  child, _ = run(tmp_path, 'patient')
  os.kill(child.pid, signal.SIGSTOP)
  time.sleep(8)
  assert child.poll() is None
  os.kill(child.pid, signal.SIGCONT)
  time.sleep(1.5)
  assert child.poll() is None  # the process ran for only 1.5 s after it was suspended
  child.kill()
  child.communicate()


def test_the_stacks_are_there_before_the_end_and_gone_when_it_moves_again(tmp_path):
  file = tmp_path / 'stacks-0.txt'
  with watchdog.Watchdog(tmp_path, 60.0, early=0.2) as dog, dog.steady():
    dog.moved()
    until(file.exists)
    assert 'test_watchdog' in file.read_text()
    dog.moved()
    until(lambda: not file.exists())
  assert not file.exists()


def test_of_a_run_that_ends_well_and_of_one_before_it_no_stacks_stay(tmp_path):
  file = tmp_path / 'stacks-0.txt'
  file.write_text('of another day')
  with watchdog.Watchdog(tmp_path, 60.0, early=0.2) as dog:
    assert not file.exists()
    with dog.patient():
      until(file.exists)
  assert not file.exists()


def test_outside_of_what_it_watches_nothing_is_stuck(tmp_path):
  with watchdog.Watchdog(tmp_path, 0.2) as dog:
    time.sleep(1.5)
    assert dog._limit() == math.inf
  assert not list(tmp_path.iterdir())
  with watchdog.Watchdog(tmp_path, 0.0) as dog, dog.steady():  # seconds=0 turns the watchdog off
    assert not dog._thread.is_alive()


@pytest.mark.parametrize(('step', 'limit'), [(1.0, 100.0), (5.0, 150.0)])
def test_slow_steps_are_given_thirty_times_their_median(tmp_path, step, limit):
  dog = watchdog.Watchdog(tmp_path, 100.0)
  with dog.patient():
    assert dog._limit() == 600.0
    with dog.steady():
      # The steps of 0 s and of 80 s do not change the median.
      for seconds in (0.0, step, 80.0, step):
        dog._still = seconds
        dog.moved()
        assert dog._limit() == 600.0  # too few steps for a median
      dog._still = step
      dog.moved()
      assert dog._limit() == limit
      with dog.patient():
        assert dog._limit() == 600.0
      assert dog._limit() == limit
    assert dog._limit() == 600.0
  assert dog._limit() == math.inf


def test_what_came_before_counts_neither_in_nor_after_what_takes_its_time(tmp_path):
  dog = watchdog.Watchdog(tmp_path, 100.0)
  assert dog._early == 50.0
  dog._still = 500.0
  with dog.patient():
    assert dog._still == 0.0
    dog._still = 500.0  # a long save
  assert dog._still == 0.0
  for _ in range(2):  # the steps of the first round do not count in the second
    with dog.steady():
      assert dog._limit() == 600.0
      for _ in range(5):
        dog.moved()
      assert dog._limit() == 100.0


def test_at_the_end_the_stacks_are_written_if_they_were_not_before(tmp_path):
  script = STUCK.replace('1.0, process=3)', '1.0, process=3, early=60.0)')
  child = subprocess.run(
    [sys.executable, '-c', script, str(tmp_path), 'steady', 'fine'], cwd=ROOT, text=True,
    capture_output=True, timeout=60,
  )  # fmt: skip
  assert child.returncode == 134 and 'stuck_here' in (tmp_path / 'stacks-3.txt').read_text()


def test_a_look_is_a_move_but_a_wait_is_none(tmp_path):
  dog = watchdog.Watchdog(tmp_path, 100.0)
  stop = interrupt.Interrupt(dog=dog)
  for look, still in (
    (lambda: stop.check(moved=False), 5.0), (lambda: stop.requested, 0.0), (stop.check, 0.0)
  ):  # fmt: skip
    dog._still = 5.0
    look()
    assert dog._still == still


def until(found):
  end = time.monotonic() + 10
  while not found():
    assert time.monotonic() < end
    time.sleep(0.02)
