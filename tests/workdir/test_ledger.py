"""Tests of the lock of a workdir and of its ledger of events."""

import multiprocessing
import os
import socket
import threading
import time

import pytest
import waits
from absl import logging

from gdistill import errors
from gdistill.workdir import ledger
from gdistill.workdir import storage

# ---- the lock


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
  with ledger.Lock(tmp_path):
    held = (tmp_path / 'lock.json').read_bytes()
    who = rf'host {socket.gethostname()}, pid {os.getpid()}, heartbeat \d+ s ago; stop that'
    with pytest.raises(errors.ConfigError, match=who), ledger.Lock(tmp_path):
      pass
    assert (tmp_path / 'lock.json').read_bytes() == held
  assert not (tmp_path / 'lock.json').exists()


def _hold(workdir, ready):
  with ledger.Lock(workdir):
    ready.set()
    time.sleep(3600)


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
  context = multiprocessing.get_context('spawn')
  ready = context.Event()
  holder = context.Process(target=_hold, args=(str(tmp_path), ready))
  holder.start()
  try:
    assert ready.wait(waits.SECONDS)
    with pytest.raises(errors.ConfigError, match=f'pid {holder.pid}'), ledger.Lock(tmp_path):
      pass
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with ledger.Lock(tmp_path):  # the killed process is a zombie, which must count as dead
      assert storage.read_json(tmp_path / 'lock.json')['pid'] == os.getpid()
  finally:
    holder.kill()
    holder.join()


def _forge(workdir, silent=0, **changed):
  """Leaves the lock of another holder, whose last heartbeat was `silent` seconds ago."""
  with ledger.Lock(workdir):
    holder = storage.read_json(workdir / 'lock.json')
  holder |= {'token': 'other', 'heartbeat': time.time() - silent, **changed}
  storage.write_json(workdir / 'lock.json', holder)


@pytest.mark.parametrize(
  'changed, stale',
  [
    ({}, False),
    ({'silent': 3600}, True),
    ({'started': '1'}, True),  # the holder ended, and its process id was given to another process
    ({'host': 'elsewhere', 'pid': 2**22 + 1}, False),  # on another host, so it may be alive
    ({'machine': 'boot before', 'pid': 2**22 + 1}, False),
    ({'host': 'elsewhere', 'silent': 3600}, True),
    ({'silent': 3600, 'lease_seconds': 7200}, False),
    ({'heartbeat': None}, True),
  ],
)
def test_only_a_dead_or_silent_holder_is_stale(tmp_path, changed, stale):
  _forge(tmp_path, **changed)
  if stale:
    with ledger.Lock(tmp_path):
      pass
  else:
    with pytest.raises(errors.ConfigError, match='in use'), ledger.Lock(tmp_path):
      pass


def test_the_heartbeat_is_renewed(tmp_path):
  with ledger.Lock(tmp_path, lease_seconds=0.2) as lock:
    first = storage.read_json(tmp_path / 'lock.json')['heartbeat']
    waits.until(lambda: storage.read_json(tmp_path / 'lock.json')['heartbeat'] > first)
    lock.check()


def test_a_lock_that_was_lost_is_noticed_and_left_to_its_new_holder(tmp_path):
  with ledger.Lock(tmp_path, lease_seconds=0.2) as lock:
    other = {'host': 'h2', 'pid': 7, 'token': 'other', 'heartbeat': time.time()}
    with ledger._alone(tmp_path):
      storage.write_json(tmp_path / 'lock.json', other)
    waits.until(lambda: lock.lost)
    with pytest.raises(errors.ConfigError, match='taken over by host h2, pid 7'):
      lock.check()
  assert storage.read_json(tmp_path / 'lock.json') == other


# ---- the ledger


def test_the_ledger_is_in_order_and_immutable(tmp_path):
  ledger.record(tmp_path, 'round-begins', index=0)
  first = (tmp_path / 'ledger' / '00000001-round-begins.json').read_bytes()
  for i in range(11):
    ledger.record(tmp_path, 'tick', index=i, loss=float('nan'))
  entries = ledger.ledger(tmp_path)
  assert [e['number'] for e in entries] == list(range(1, 13))
  assert [e['event'] for e in entries] == ['round-begins'] + ['tick'] * 11
  assert entries[-1]['index'] == 10 and entries[-1]['loss'] is None
  assert (tmp_path / 'ledger' / '00000001-round-begins.json').read_bytes() == first


def test_an_entry_is_never_overwritten(tmp_path, monkeypatch):
  ledger.record(tmp_path, 'tick', index=0)
  listed = storage.list_dir
  monkeypatch.setattr(storage, 'list_dir', lambda p: [])  # as if written after the listing
  assert ledger.record(tmp_path, 'tick', index=1)['number'] == 2
  monkeypatch.setattr(storage, 'list_dir', listed)
  assert [e['index'] for e in ledger.ledger(tmp_path)] == [0, 1]


def test_a_number_is_not_given_twice_when_an_entry_was_lost(tmp_path):
  for _ in range(3):
    ledger.record(tmp_path, 'tick')
  (tmp_path / 'ledger' / '00000001-tick.json').unlink()
  assert ledger.record(tmp_path, 'other')['number'] == 4


def test_many_writers_get_different_numbers(tmp_path):
  def write(i):
    ledger.record(tmp_path, f'event{i}')

  threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
  [t.start() for t in threads]
  [t.join() for t in threads]
  assert [e['number'] for e in ledger.ledger(tmp_path)] == list(range(1, 9))


def test_a_broken_entry_is_skipped_with_a_warning(tmp_path, monkeypatch):
  warned = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warned.append(text % args))
  for _ in range(3):
    ledger.record(tmp_path, 'tick')
  (tmp_path / 'ledger' / '00000002-tick.json').write_bytes(b'{')
  assert [e['number'] for e in ledger.ledger(tmp_path)] == [1, 3]
  assert len(warned) == 1 and '00000002-tick.json' in warned[0]
  assert ledger.record(tmp_path, 'tick')['number'] == 4


@pytest.mark.parametrize('event', ['', 'a/b', 'a b', 'x' * 65, 'a\n'])
def test_an_event_must_be_a_plain_name(tmp_path, event):
  with pytest.raises(errors.ConfigError, match='event='):
    ledger.record(tmp_path, event)
  assert os.listdir(tmp_path) == []
