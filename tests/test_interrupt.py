import os
import signal
import subprocess
import sys

import pytest

from gdistill import errors
from gdistill import interrupt


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_until_it_is_asked_for(number):
  before = signal.getsignal(number)
  with interrupt.Interrupt() as stop:
    stop.check()
    os.kill(os.getpid(), number)
    assert stop.requested == number.name
    with pytest.raises(errors.Preempted, match=f'{number.name}.*repeat the command'):
      stop.check()
  assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once():
  code = (
    'import os, signal, time\nfrom gdistill import interrupt\n'
    'with interrupt.Interrupt():\n'
    '  os.kill(os.getpid(), signal.SIGTERM); time.sleep(1.1)\n'
    '  os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], check=False, timeout=30, capture_output=True, text=True
  )
  assert done.returncode == 128 + signal.SIGTERM and 'leaving at once' in done.stderr


def test_the_same_signal_to_the_process_and_to_its_group_is_one():
  with interrupt.Interrupt() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested == 'SIGTERM'
