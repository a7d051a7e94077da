"""Tests of signals: the first is remembered, the second exits, and workers keep their own."""

import os
import signal
import subprocess
import sys
import threading
import time
import types

import disturbed
import pytest
import waits

from gdistill import errors
from gdistill.process import interrupt


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_remembered_until_it_is_asked_for(number):
  own = signal.signal(number, signal.SIG_DFL)  # a shell's `&` may have set the signal to ignored
  before = signal.getsignal(number)
  with interrupt.Interrupt() as stop:
    stop.check()
    os.kill(os.getpid(), number)
    assert stop.requested == number.name
    with pytest.raises(errors.Preempted, match=f'{number.name}.*repeat the command'):
      stop.check()
  assert signal.getsignal(number) is before
  signal.signal(number, own)


# A wait in Python, which runs signal handlers, and a wait in C code, which runs none for minutes.
WAITS = ('time.sleep(3600)', "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2 * 10**9)")


@pytest.mark.parametrize('wait', WAITS)
def test_a_second_signal_leaves_at_once(wait):
  code = (
    'import hashlib, threading, time\nfrom gdistill.process import interrupt\n'
    'def tell():\n'
    '  while not stop.requested: time.sleep(0.01)\n'
    '  print(stop.requested, flush=True)\n'
    'with interrupt.Interrupt() as stop:\n'
    '  threading.Thread(target=tell, daemon=True).start()\n'
    "  print('here', flush=True)\n"
    f'  while True: {wait}\n'
  )
  child = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    preexec_fn=disturbed.hears,
  )  # fmt: skip
  try:
    assert child.stdout.readline() == 'here\n'
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == 'SIGTERM\n'
    time.sleep(1.0)
    assert child.poll() is None  # one signal alone does not end it
    sent = time.monotonic()
    waits.signalled(child, signal.SIGHUP)
    seconds = time.monotonic() - sent
  finally:
    child.kill()
  assert 'exiting without saving' in child.communicate()[1]
  assert child.returncode == 128 + signal.SIGHUP
  assert seconds < 60.0  # milliseconds on a machine that is not busy; the waits take minutes


def test_what_a_terminal_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with interrupt.Interrupt() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert stop.requested == ''
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_forked_workers_signals_are_its_own():
  own = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  with interrupt.Interrupt() as stop:
    child = os.fork()
    if not child:
      os.kill(os.getpid(), signal.SIGTERM)
      os._exit(0)
    os.waitpid(child, 0)
    assert stop.requested == ''
    # The pipe keeps the order: a SIGTERM of the worker would be read before this SIGHUP.
    os.write(stop._pipe, bytes([signal.SIGHUP]))
    waits.until(lambda: stop.requested)
    assert stop.requested == 'SIGHUP'
  signal.signal(signal.SIGHUP, own)


def test_the_same_signal_to_the_process_and_to_its_group_is_one(monkeypatch):
  # The clock stands still, because this process may be starved between the two signals. Each look
  # at it is recorded with its thread: a thread of an earlier test may still end.
  looks, before = [], threading.enumerate()
  clock = types.SimpleNamespace(monotonic=lambda: looks.append(threading.get_ident()) or 1000.0)
  monkeypatch.setattr(interrupt, 'time', clock)
  with interrupt.Interrupt() as stop:
    begun = set(threading.enumerate()) - set(before)
    [reader] = [t for t in begun if t.name == 'gdistill-signals']
    os.kill(os.getpid(), signal.SIGTERM)
    waits.until(lambda: looks.count(reader.ident) == 2)  # the first signal looks twice
    os.kill(os.getpid(), signal.SIGTERM)
    waits.until(lambda: looks.count(reader.ident) == 3)
    assert stop.requested == 'SIGTERM'
