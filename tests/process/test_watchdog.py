"""Tests of the watchdog: its limits, the stacks that it writes, and the exit code."""

import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import waits

from gdistill.process import interrupt
from gdistill.process import watchdog

ROOT = pathlib.Path(__file__).parents[2]
# The script prints a time at which work was still done. Nothing in it takes less than an hour.
STUCK = """
import os, signal, sys, threading, time
from gdistill.process import interrupt, watchdog
folder, kind, fault = sys.argv[1:]
inside = threading.Event()

def stuck_here():
  inside.set()
  time.sleep(3600)

watchdog._WRITING = 60.0  # a disk that is only slow is waited for
if fault == 'disk':
  watchdog._WRITING = 0.3
  watchdog.storage.write_bytes = lambda *args: time.sleep(3600)
with watchdog.Watchdog(folder, 1.0, process=3) as dog, interrupt.Interrupt(dog=dog) as stop:
  threading.Thread(target=stuck_here, daemon=True).start()
  inside.wait()
  with getattr(stop, kind)():
    print(time.monotonic(), flush=True)
    for _ in range(20):
      stop.check()
    if fault == 'suspended':
      os.kill(os.getpid(), signal.SIGSTOP)
    while True:
      stop.check(moved=False)
      time.sleep(0.01)
"""


def start(folder, kind='steady', fault='none', script=STUCK):
  return subprocess.Popen(
    [sys.executable, '-c', script, str(folder), kind, fault], cwd=ROOT, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def left(child):
  """Returns the lines of a script that the watchdog ended, and the seconds it was stuck at least.

  On a busy machine the script may be stuck for longer than the limit, because the watchdog counts
  the time in which it ran. Its line tells that time.
  """
  out, lines = child.communicate(timeout=waits.SECONDS)
  assert child.returncode == 134, lines
  return lines, time.monotonic() - float(out)


def counted(lines):
  return int(re.search(r'no progress for (\d+) s, so', lines)[1])


def test_who_does_not_move_leaves_with_134_and_the_stacks_of_all_threads(tmp_path):
  lines, seconds = left(start(tmp_path))
  assert counted(lines) == 1 and seconds > 0.7
  assert lines.startswith('gdistill: no progress for 1 s, so') and lines.count('\n') == 1
  stacks = (tmp_path / 'stacks-3.txt').read_text()
  assert str(tmp_path / 'stacks-3.txt') in lines
  assert 'stuck_here' in stacks and '<module>' in stacks and 'no progress' in stacks


def test_a_disk_that_is_stuck_does_not_hold_it_back(tmp_path):
  lines, _ = left(start(tmp_path, fault='disk'))
  assert counted(lines) == 1
  assert 'stuck_here' in lines and 'the stacks of all threads are above; repeat' in lines


@pytest.mark.full
def test_what_takes_its_time_is_given_six_times_as_much(tmp_path):
  lines, seconds = left(start(tmp_path, 'patient'))
  assert counted(lines) == 6 and seconds > 5.5


@pytest.mark.full
def test_a_process_that_was_suspended_is_not_stuck(tmp_path):
  child = start(tmp_path, fault='suspended')
  assert os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED).si_code == os.CLD_STOPPED
  time.sleep(8)
  child.send_signal(signal.SIGCONT)
  lines, seconds = left(child)
  assert counted(lines) == 1 and seconds > 8.7  # the limit of 1 s began after the 8 s


def test_the_stacks_are_there_before_the_end_and_gone_when_it_moves_again(tmp_path):
  file = tmp_path / 'stacks-0.txt'
  with watchdog.Watchdog(tmp_path, 60.0, early=0.2) as dog, dog.steady():
    dog.moved()
    waits.until(file.exists)
    assert 'test_watchdog' in file.read_text()
    waits.until(lambda: not file.exists(), meanwhile=dog.moved)
  assert not file.exists()


def test_of_a_run_that_ends_well_and_of_one_before_it_no_stacks_stay(tmp_path):
  file = tmp_path / 'stacks-0.txt'
  file.write_text('of another day')
  with watchdog.Watchdog(tmp_path, 60.0, early=0.2) as dog:
    assert not file.exists()
    with dog.patient():
      waits.until(file.exists)
  assert not file.exists()


def test_outside_of_what_it_watches_nothing_is_stuck(tmp_path):
  with watchdog.Watchdog(tmp_path, 0.2) as dog:
    waits.until(lambda: dog._still > 1.0)  # five times the limit
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
  assert counted(left(start(tmp_path, script=script))[0]) == 1
  assert 'stuck_here' in (tmp_path / 'stacks-3.txt').read_text()


def test_a_look_is_a_move_but_a_wait_is_none(tmp_path):
  dog = watchdog.Watchdog(tmp_path, 100.0)
  stop = interrupt.Interrupt(dog=dog)
  for look, still in (
    (lambda: stop.check(moved=False), 5.0), (lambda: stop.requested, 0.0), (stop.check, 0.0)
  ):  # fmt: skip
    dog._still = 5.0
    look()
    assert dog._still == still
