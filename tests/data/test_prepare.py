"""Every source becomes the same records, however often the work is killed and repeated."""

import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import disturbed
import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import prepare
from gdistill.data import prepare_settings
from gdistill.data import records

ROOT = pathlib.Path(__file__).parents[2]
# Suspends itself and its workers once the first shard is complete.
SUSPENDED = """
import contextlib, os, signal
from gdistill.data import prepare
results = prepare._results
def suspended(*given):
  with contextlib.closing(results(*given)) as shards:
    yield next(shards)
    os.killpg(0, signal.SIGSTOP)
    yield from shards
prepare._results = suspended
"""


def command(*flags, source, out, before=''):
  code = before + 'from gdistill.cli import command; command.program()'
  flags = [f'--source={source}', f'--out={out}', *flags]
  return [sys.executable, '-c', code, 'prepare', *flags]


def run(*flags, source, out) -> tuple[int, str]:
  done = subprocess.run(
    command(*flags, source=source, out=out), cwd=ROOT, capture_output=True, text=True, timeout=600
  )
  return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def large(tmp_path_factory):
  """Returns a folder of pictures that take a second or two to prepare."""
  path = tmp_path_factory.mktemp('large')
  low = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
  for k in range(4):
    data = labelled.encode(np.kron(np.roll(low, k, 0), np.ones((60, 64, 1), np.uint8)), 'JPEG')
    for label in labelled.CLASSES:
      for i in range(12):
        labelled.write(path / 'train' / label / f'{k}_{i}.jpg', data)
      labelled.write(path / 'validation' / label / f'{k}.jpg', data)
  return path


@pytest.mark.full
def test_the_number_of_workers_changes_no_byte(folder_path, records_path, tmp_path):
  labelled.prepared(folder_path, tmp_path, workers=3)
  assert labelled.contents(tmp_path) == labelled.contents(records_path)


def test_an_archive_and_a_tfds_set_give_the_records_of_the_folder(
  archives, tfds_path, records_path, tmp_path
):
  for name, source in (('a', archives['tar.xz']), ('b', archives['zip']), ('c', 'tfds:cifar10')):
    labelled.prepared(source, tmp_path / name, data_dir=str(tfds_path))
    shards = [n for n in labelled.contents(records_path) if n.endswith(('.array_record', '.int32'))]
    for shard in shards:
      assert (tmp_path / name / shard).read_bytes() == (records_path / shard).read_bytes()
    if name != 'c':
      index = 'train/index.json'
      assert (tmp_path / name / index).read_bytes() == (records_path / index).read_bytes()


def test_pictures_are_cropped_and_resized_and_classes_may_lie_at_the_top(tmp_path):
  pixels = labelled.pixels_of('train', 0, 0, (24, 36))
  labelled.write(tmp_path / 'in' / 'ape' / '1.png', labelled.encode(pixels))
  labelled.prepared(tmp_path / 'in', tmp_path / 'out', split='', held_out_split='')
  wanted = labelled.settings('records', tmp_path / 'out', split='', held_out=0.4)
  train, _ = records.load(wanted, labelled.SHAPE)
  total = pixels[:, 6:30].reshape(12, 2, 12, 2, 3).sum((1, 3), dtype=int)
  np.testing.assert_array_equal(train[0][0], (total + 2) // 4)


def test_corrupt_pictures_are_all_named_and_nothing_is_published(folder_path, tmp_path):
  source = shutil.copytree(folder_path, tmp_path / 'in')
  for name in ('train/ape/3.png', 'train/cat/6.png', 'validation/bee/1.png'):
    (source / name).write_bytes((source / name).read_bytes()[:40])
  out = tmp_path / 'out'
  with pytest.raises(errors.DataError) as e:
    labelled.prepared(source, out)
  assert str(e.value).startswith('3 of 29 pictures cannot be used: ')
  for name in ('train/ape/3.png', 'train/cat/6.png', 'validation/bee/1.png', '--skip_corrupt'):
    assert name in str(e.value)
  assert not list(out.rglob('index.json'))
  # Shards without corrupt pictures are kept, and the others are made once they are mended.
  before = {f: f.stat().st_mtime_ns for f in out.rglob('*.array_record')}
  assert [f.name[:5] for f in sorted(before)] == ['00001', '00002', '00001']
  for name in ('train/ape/3.png', 'train/cat/6.png', 'validation/bee/1.png'):
    shutil.copy(folder_path / name, source / name)
  labelled.prepared(source, out)
  assert {f: f.stat().st_mtime_ns for f in before} == before
  labelled.prepared(folder_path, tmp_path / 'again')
  assert labelled.contents(out).keys() == labelled.contents(tmp_path / 'again').keys()
  for split in labelled.COUNTS:
    a, b = ((p / split / 'index.json').read_bytes() for p in (out, tmp_path / 'again'))
    assert a == b


def test_a_long_list_of_corrupt_pictures_is_cut_and_kept_in_a_file(tmp_path):
  for i in range(30):
    labelled.write(tmp_path / 'in' / 'a' / f'{i}.png', b'')
  with pytest.raises(errors.DataError, match=r'^30 of 30 .*all are in .*corrupt\.txt') as e:
    labelled.prepared(tmp_path / 'in', tmp_path / 'out', split='', held_out_split='')
  assert str(e.value).count('no readable picture') == 20
  assert len((tmp_path / 'out' / 'corrupt.txt').read_text().splitlines()) == 30
  with pytest.raises(errors.DataError, match='are damaged or too small; replace'):
    labelled.prepared(
      tmp_path / 'in', tmp_path / 'out', split='', held_out_split='', skip_corrupt=True
    )


def test_what_killed_runs_left_unfinished_is_removed(folder_path, records_path, tmp_path):
  out = shutil.copytree(records_path, tmp_path / 'out')
  left = [
    out / '.tmp-0123456789abcdef',
    out / '.tmp-prepare-pictures',
    out / 'train/.tmp-prepare-1',
  ]
  for file in left:
    file.write_bytes(b'x')
  os.utime(left[0], (0, 0))
  labelled.prepared(folder_path, out)
  assert not [f for f in left if f.exists()]


def test_too_little_disk_is_told_before_anything_is_made(folder_path, tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(1, 1, 1000))
  with pytest.raises(
    errors.ConfigError, match=r'needs 0\.00 GiB more and .* are free; free disk space'
  ):
    labelled.prepared(folder_path, tmp_path)
  assert not list(tmp_path.rglob('*.array_record'))


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(
  folder_path, records_path, tmp_path, monkeypatch
):
  if os.geteuid():
    pytest.skip('a small disk is only mounted by root')
  small = tmp_path / 'small'
  small.mkdir()
  mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', small], check=False)
  if mounted.returncode:
    pytest.skip('a small disk is only mounted by root')
  try:
    monkeypatch.setattr(prepare, '_check_disk', lambda job: None)
    with pytest.raises(errors.DataError, match=r'small.* cannot be written: .*No space left.*free'):
      labelled.prepared(folder_path, small)
    assert not list(small.rglob('index.json'))
    subprocess.run(['mount', '-o', 'remount,size=10m', small], check=True)
    labelled.prepared(folder_path, small)
    assert labelled.contents(small) == labelled.contents(records_path)
  finally:
    subprocess.run(['umount', small], check=True)


def test_the_command_says_what_it_made_and_that_it_is_finished(folder_path, tmp_path):
  flags = '--size=12', '--shard_size=6', '--workers=1'
  code, said = run(*flags, source=folder_path, out=tmp_path / 'out')
  index = records.read_index(str(tmp_path / 'out' / 'train'))
  made = '20 pictures of 12 x 12, 3 classes, 0 unreadable pictures skipped'
  assert code == 0 and f'{made}, digest {index["digest"]}' in said
  assert re.search(r'29 pictures prepared in [\d.]+ s, \d+ pictures per second', said)
  before = labelled.contents(tmp_path / 'out')
  code, said = run(*flags, source=folder_path, out=tmp_path / 'out')
  assert code == 0 and 'nothing to do' in said
  assert labelled.contents(tmp_path / 'out') == before


FLAGS = '--size=16', '--shard_size=5', '--workers=2'


@pytest.fixture(scope='module')
def undisturbed(large, tmp_path_factory):
  out = tmp_path_factory.mktemp('undisturbed') / 'out'
  began = time.monotonic()
  code, said = run(*FLAGS, source=large, out=out)
  assert code == 0, said
  return labelled.contents(out), time.monotonic() - began


def until_done(source, out, draw, most):
  """Kills the command after `draw()` seconds, `most` times; returns the kills that hit it."""
  hits = 0
  for _ in range(most):
    process = subprocess.Popen(
      command(*FLAGS, source=source, out=out), cwd=ROOT, stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(draw())
    process.kill()
    _, said = process.communicate(timeout=300)
    assert process.returncode in (-signal.SIGKILL, 0), said
    if process.returncode == 0:  # the work is done
      break
    hits += 1
  code, said = run(*FLAGS, source=source, out=out)
  assert code == 0, said
  return hits


@pytest.mark.full
def test_killed_at_any_time_and_repeated_it_ends_with_the_same_bytes(large, undisturbed, tmp_path):
  expected, seconds = undisturbed
  rng = random.Random(40)
  hits, tries = 0, 0
  while hits < 40:
    out, tries = tmp_path / f'out{tries}', tries + 1
    found = until_done(large, out, lambda: rng.uniform(0.2, 1.0) * seconds, 3)
    assert labelled.contents(out) == expected
    hits += found
    if not found:  # the machine was busier when the time was taken
      seconds /= 2
  print(f'{hits} kills')


@pytest.mark.full
def test_a_signal_stops_it_with_42_and_it_goes_on(large, undisturbed, tmp_path):
  process = subprocess.Popen(
    command(*FLAGS, source=large, out=tmp_path / 'out', before=SUSPENDED), cwd=ROOT,
    stderr=subprocess.PIPE, start_new_session=True, preexec_fn=disturbed.hears,
  )  # fmt: skip
  stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
  assert stopped.si_code == os.CLD_STOPPED, process.communicate()[1]
  assert list((tmp_path / 'out').rglob('*.array_record'))
  second = run(*FLAGS, source=large, out=tmp_path / 'out')
  os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
  os.killpg(process.pid, signal.SIGCONT)
  _, said = process.communicate(timeout=300)
  assert second[0] == 2 and 'is in use by' in second[1]
  assert process.returncode == 42, said
  assert said.decode().count('\n') == 1 and 'repeat the command' in said.decode()
  assert run(*FLAGS, source=large, out=tmp_path / 'out')[0] == 0
  assert labelled.contents(tmp_path / 'out') == undisturbed[0]


@pytest.mark.full
def test_a_worker_that_dies_is_told_and_nothing_is_lost(folder_path, tmp_path, monkeypatch):
  wanted = prepare_settings.Settings(str(folder_path), str(tmp_path), size=12, shard_size=6)
  job = prepare.plan(wanted, labelled.look)
  monkeypatch.setattr(prepare, '_process', _dies)
  with pytest.raises(errors.DataError, match='a worker process died with exit code 7'):
    prepare.work(job, labelled.look, lambda done, speed: None)
  monkeypatch.undo()
  labelled.prepared(folder_path, tmp_path)


def _dies(*args):
  os._exit(7)
