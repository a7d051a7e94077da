"""Tests of signals: the first is remembered, the second exits, and workers keep their own."""

import os
import signal
import subprocess
import sys
import time

import disturbed
import pytest

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


# A wait in Python, which runs signal handlers, and a wait in C code, which runs none for a minute.
WAITS = ('time.sleep(60)', "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)")


@pytest.mark.parametrize('wait', WAITS)
def test_a_second_signal_leaves_at_once(wait):
  code = (
    'import hashlib, os, time\nfrom gdistill.process import interrupt\n'
    "with interrupt.Interrupt():\n  print('here', flush=True)\n"
    f'  while True: {wait}\n'
  )
  child = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    preexec_fn=disturbed.hears,
  )  # fmt: skip
  assert child.stdout.readline() == 'here\n'
  time.sleep(0.2)
  child.send_signal(signal.SIGTERM)
  time.sleep(1.0)
  assert child.poll() is None
  sent = time.monotonic()
  child.send_signal(signal.SIGHUP)
  assert 'exiting without saving' in child.communicate(timeout=30)[1]
  assert child.returncode == 128 + signal.SIGHUP
  assert time.monotonic() - sent < 5.0  # it takes milliseconds on a machine that is not busy


def test_what_a_terminal_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with interrupt.Interrupt() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert stop.requested == ''
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_forked_workers_signals_are_its_own():
  with interrupt.Interrupt() as stop:
    child = os.fork()
    if not child:
      os.kill(os.getpid(), signal.SIGTERM)
      os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.2)
    assert stop.requested == ''


def test_the_same_signal_to_the_process_and_to_its_group_is_one():
  with interrupt.Interrupt() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested == 'SIGTERM'
