"""Batches depend on seed and step alone, however they are read; dead workers are reported."""

import dataclasses
import os
import subprocess
import sys

import labelled
import numpy as np
import pytest
import waits

from gdistill import errors
from gdistill.data import pipeline
from gdistill.data import source

SEED = (3, 1)


@dataclasses.dataclass(frozen=True)
class Numbered:
  """Reads example i, a picture of the value i, or a DataError for `bad`; workers unpickle it."""

  bad: int = -1

  def __call__(self, i):
    if i == self.bad:
      raise errors.DataError(
        f'train/cat/{i}.jpg is no readable picture; fix or remove this picture'
      )
    return np.full((2, 2, 1), i, np.uint8), i % 3


def numbered(count=30, bad=-1):
  return source.Source(Numbered(bad), count, (2, 2, 1), ('a', 'b', 'c'), 'f')


def numbers(batch):
  return batch['pixels'][:, 0, 0, 0].tolist()


def reader(data, steps=12, size=8, rows=None, **more):
  rows = np.arange(size) if rows is None else rows
  more = {'threads': 2, 'prefetch': 2, **more}
  return pipeline.reader(data, SEED, size, rows, steps, labelled.settings('folder', 'x', **more))


def same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key])


def test_every_example_comes_equally_often_and_in_another_order_each_time():
  data = numbered(30)
  dealt = np.concatenate([numbers(pipeline.batch(data, SEED, step, 8)) for step in range(15)])
  for turn in range(4):
    assert sorted(dealt[30 * turn : 30 * turn + 30]) == list(range(30))
  assert dealt[:30].tolist() != dealt[30:60].tolist()


def test_another_seed_is_another_order():
  a, b = (numbers(pipeline.batch(numbered(), seed, 0, 30)) for seed in ((1, 0), (1, 1)))
  assert a != b and sorted(a) == sorted(b)


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('step', [0, 3, 10**9])
def test_what_the_hosts_read_is_the_whole_batch(hosts, step):
  data = numbered()
  whole = pipeline.batch(data, SEED, step, 8)
  parts = [pipeline.batch(data, SEED, step, 8, r) for r in np.split(np.arange(8), hosts)]
  same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
  assert whole['id'].tolist() == list(range(8))


def test_a_batch_has_pixels_and_labels_of_the_same_examples():
  found = pipeline.batch(numbered(), SEED, 5, 8)
  assert found['pixels'].dtype == np.uint8 and found['label'].dtype == np.int32
  assert [n % 3 for n in numbers(found)] == found['label'].tolist()


def test_fewer_examples_than_a_batch_are_refused():
  with pytest.raises(errors.DataError, match='7 training examples are fewer than one batch of 8'):
    pipeline.batch(numbered(7), SEED, 0, 8)


@pytest.mark.full
@pytest.mark.parametrize('workers, steps', [
  (0, (0, 1, 2, 3, 7, 8, 9, 10, 11, 2, 3)), (2, (0, 1, 2, 7, 8, 9, 10, 11)),
])  # fmt: skip
def test_reading_ahead_gives_the_same_batches_also_after_a_restart(workers, steps):
  data = numbered()
  read = reader(data, workers=workers)
  for step in steps:  # a jump is a resumed run
    same(read(step), pipeline.batch(data, SEED, step, 8))


def test_a_host_reads_ahead_its_own_rows_alone():
  rows = np.arange(4, 8)
  read = reader(numbered(), rows=rows)
  for step in range(3):
    same(read(step), pipeline.batch(numbered(), SEED, step, 8, rows))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_damaged_picture_reaches_the_caller_by_name(workers):
  read = reader(numbered(bad=17), workers=workers)
  with pytest.raises(errors.DataError, match=r'^train/cat/17\.jpg is no readable picture; fix'):
    for step in range(4):
      read(step)
  if not workers:
    with pytest.raises(errors.DataError, match='17'):
      for step in range(4):
        read(step)


def test_data_in_memory_needs_no_grain(monkeypatch):
  monkeypatch.setitem(sys.modules, 'grain', None)  # makes its import raise
  pixels = np.arange(30, dtype=np.uint8)[:, None, None, None]
  data = source.in_memory(pixels, np.zeros(30, np.int32), ('a',))
  same(reader(data)(4), pipeline.batch(data, SEED, 4, 8))
  with pytest.raises(ImportError):
    reader(numbered())(4)


RUN = """
import os, signal, sys, time
import numpy as np, psutil
from gdistill import errors
from gdistill.data import pipeline
import labelled, test_pipeline

if __name__ == '__main__':
  read = test_pipeline.reader(test_pipeline.numbered(), steps=10**6, workers=2)
  read(0)
  workers = [c for c in psutil.Process().children() if 'spawn_main' in ' '.join(c.cmdline())]
  assert len(workers) == 2
  print(*(w.pid for w in workers), flush=True)
  if sys.argv[1] == 'signals':
    for w in workers:
      w.send_signal(signal.SIGTERM)
      w.send_signal(signal.SIGINT)
    for step in range(1, 100):
      read(step)
  elif sys.argv[1] == 'killed':
    for w in workers:
      w.kill()
    try:
      for step in range(1, 100):
        read(step)
    except errors.DataError as e:
      assert 'data.workers=2: a worker process died' in str(e), e
    else:
      raise AssertionError
  else:
    time.sleep(3600)
"""


def program(tmp_path, mode):
  (tmp_path / 'run.py').write_text(RUN)
  path = os.pathsep.join([*map(os.path.dirname, (__file__, labelled.__file__)), *sys.path])
  return subprocess.Popen(
    [sys.executable, str(tmp_path / 'run.py'), mode], stdout=subprocess.PIPE, text=True,
    env={**os.environ, 'PYTHONPATH': path},
  )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize('mode', ['signals', 'killed'])
def test_workers_outlive_signals_to_the_group_and_their_death_is_told(tmp_path, mode):
  assert program(tmp_path, mode).wait(waits.SECONDS) == 0


@pytest.mark.full
def test_workers_do_not_outlive_the_killed_process_that_reads(tmp_path):
  run = program(tmp_path, 'sleep')
  workers = [int(pid) for pid in run.stdout.readline().split()]
  assert len(workers) == 2
  run.kill()
  run.wait()
  waits.until(lambda: not any(alive(pid) for pid in workers))


def alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as f:
      return f.read().rpartition(')')[2].split()[0] not in 'ZX'
  except FileNotFoundError:
    return False
