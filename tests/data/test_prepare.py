import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import prepare
from gdistill.data import records


def contents(out) -> dict[str, str]:
  """{file: digest} of what a run leaves."""
  found = {
    str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest()
    for f in sorted(out.rglob('*'))
    # a kill within a heartbeat leaves the lock's own, which a run a minute later removes
    if f.is_file() and not re.fullmatch(r'\.tmp-[0-9a-f]{16}', f.name)
  }
  assert not [n for n in found if '.tmp-' in n or 'lock.json' in n], found
  return found


def command(*flags, source, out):
  code = 'import sys; from gdistill import cli; sys.exit(cli.main(sys.argv[1:]))'
  flags = [f'--source={source}', f'--out={out}', *flags]
  return [sys.executable, '-c', code, 'prepare', *flags]


def run(*flags, source, out) -> tuple[int, str]:
  done = subprocess.run(
    command(*flags, source=source, out=out), capture_output=True, text=True, timeout=120
  )
  return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def large(tmp_path_factory):
  """A folder whose pictures take a second or two to prepare."""
  path = tmp_path_factory.mktemp('large')
  low = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
  for k in range(4):
    data = labelled.encode(np.kron(np.roll(low, k, 0), np.ones((60, 64, 1), np.uint8)), 'JPEG')
    for label in labelled.CLASSES:
      for i in range(12):
        labelled.write(path / 'train' / label / f'{k}_{i}.jpg', data)
      labelled.write(path / 'validation' / label / f'{k}.jpg', data)
  return path


def test_the_number_of_workers_changes_no_byte(folder_path, records_path, tmp_path):
  labelled.prepared(folder_path, tmp_path, workers=3)
  assert contents(tmp_path) == contents(records_path)


def test_an_archive_and_a_tfds_set_give_the_records_of_the_folder(
  archives, tfds_path, records_path, tmp_path
):
  for name, source in (('a', archives['tar.xz']), ('b', archives['zip']), ('c', 'tfds:cifar10')):
    labelled.prepared(source, tmp_path / name, data_dir=str(tfds_path))
    shards = [n for n in contents(records_path) if n.endswith(('.array_record', '.int32'))]
    for shard in shards:
      assert (tmp_path / name / shard).read_bytes() == (records_path / shard).read_bytes()
    if name != 'c':
      index = 'train/index.json'
      assert (tmp_path / name / index).read_bytes() == (records_path / index).read_bytes()


def test_the_index_says_what_is_there_and_not_from_where(records_path, folder_path):
  index = records.read_index(str(records_path / 'train'))
  assert index['count'] == 20 and index['shape'] == [12, 12, 3]
  assert index['class_names'] == list(labelled.CLASSES)
  assert [s['count'] for s in index['shards']] == [6, 6, 6, 2]
  for shard in index['shards']:
    data = (records_path / 'train' / shard['name']).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (shard['bytes'], shard['sha256'])
  labels = np.frombuffer((records_path / 'train' / 'labels.int32').read_bytes(), '<i4')
  assert np.bincount(labels).tolist() == list(labelled.COUNTS['train'])
  assert str(folder_path) not in json.dumps(index)


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
  # the shards without them are kept, and one that is mended is made alone
  before = {f: f.stat().st_mtime_ns for f in out.rglob('*.array_record')}
  assert [f.name[:5] for f in sorted(before)] == ['00001', '00002', '00001']
  for name in ('train/ape/3.png', 'train/cat/6.png', 'validation/bee/1.png'):
    shutil.copy(folder_path / name, source / name)
  labelled.prepared(source, out)
  assert {f: f.stat().st_mtime_ns for f in before} == before
  labelled.prepared(folder_path, tmp_path / 'again')
  assert contents(out).keys() == contents(tmp_path / 'again').keys()
  for split in labelled.COUNTS:
    a, b = ((p / split / 'index.json').read_bytes() for p in (out, tmp_path / 'again'))
    assert a == b


def test_corrupt_pictures_can_be_left_out(folder_path, tmp_path):
  source = shutil.copytree(folder_path, tmp_path / 'in')
  (source / 'train/ape/3.png').write_bytes(b'')
  with pytest.raises(
    errors.DataError, match=r'1 of 29 pictures.*3\.png is no readable.*it is empty'
  ):
    labelled.prepared(source, tmp_path / 'out')
  index = labelled.prepared(source, tmp_path / 'out', skip_corrupt=True)['train']
  assert index['count'] == 19 and index['made']['skipped'] == ['train/ape/3.png']
  train, _ = records.load(labelled.settings('records', tmp_path / 'out'), labelled.SHAPE)
  rest = [e for e in labelled.examples('train') if e[0] != 'train/ape/3.png']
  for i, (_, pixels, label) in enumerate(rest):
    np.testing.assert_array_equal(train[i][0], pixels)
    assert train[i][1] == label
  with pytest.raises(
    errors.DataError, match='1 of 29'
  ):  # asked again without, it is no longer fine
    labelled.prepared(source, tmp_path / 'out')


def test_a_long_list_of_corrupt_pictures_is_cut_and_kept_in_a_file(tmp_path):
  for i in range(30):
    labelled.write(tmp_path / 'in' / 'a' / f'{i}.png', b'')
  with pytest.raises(errors.DataError, match=r'^30 of 30 .*all are in .*corrupt\.txt') as e:
    labelled.prepared(tmp_path / 'in', tmp_path / 'out', split='', held_out_split='')
  assert str(e.value).count('no readable picture') == 20
  assert len((tmp_path / 'out' / 'corrupt.txt').read_text().splitlines()) == 30
  with pytest.raises(errors.DataError, match='no picture of'):
    labelled.prepared(
      tmp_path / 'in', tmp_path / 'out', split='', held_out_split='', skip_corrupt=True
    )


@pytest.mark.parametrize('more, why', [
  ({'size': 8}, '--size=8 was 12'), ({'shard_size': 5}, '--shard_size=5 was 6'),
  ({'channels': 1}, '--channels=1 was 3'),
  ({'held_out_split': ''}, '--held_out_split= was validation'),
])  # fmt: skip
def test_other_settings_in_a_folder_that_was_begun_are_refused(
  folder_path, records_path, more, why
):
  before = contents(records_path)
  with pytest.raises(errors.ConfigError, match=f'begun otherwise: {why}; repeat that command, or'):
    labelled.prepared(folder_path, records_path, **more)
  assert contents(records_path) == before


def test_another_source_is_refused(folder_path, records_path, tmp_path):
  before = contents(records_path)
  other = shutil.copytree(folder_path, tmp_path / 'other')
  with pytest.raises(errors.ConfigError, match='--source=other was'):
    labelled.prepared(other, records_path)
  same_name = shutil.copytree(folder_path, tmp_path / 'in' / folder_path.name)
  for split in labelled.COUNTS:
    (same_name / split / 'cat').rename(same_name / split / 'dog')
  with pytest.raises(errors.ConfigError, match='has other classes than'):
    labelled.prepared(same_name, records_path)
  assert contents(records_path) == before


def test_a_folder_with_other_things_in_it_is_refused(folder_path, tmp_path):
  (tmp_path / 'thesis.txt').write_text('x')
  with pytest.raises(errors.ConfigError, match=r'has thesis\.txt in it and was not begun'):
    labelled.prepared(folder_path, tmp_path)


@pytest.mark.parametrize('damage', [
  lambda f: f.unlink(),
  lambda f: f.write_bytes(f.read_bytes()[:-7]),
  lambda f: f.write_bytes(bytes([f.read_bytes()[0] ^ 1]) + f.read_bytes()[1:]),
], ids=['gone', 'cut', 'a bit'])  # fmt: skip
@pytest.mark.parametrize('name', ['00001.array_record', '00001.json', 'labels.int32', 'index.json'])
def test_repeating_the_command_mends_what_was_damaged(
  folder_path, records_path, tmp_path, damage, name
):
  out = shutil.copytree(records_path, tmp_path / 'out')
  damage(out / 'train' / name)
  labelled.prepared(folder_path, out)
  assert contents(out) == contents(records_path)


def test_a_label_changed_in_passing_is_mended(folder_path, records_path, tmp_path):
  out = shutil.copytree(records_path, tmp_path / 'out')
  said = json.loads((out / 'train' / '00000.json').read_text())
  said['labels'][0] = 2
  (out / 'train' / '00000.json').write_text(json.dumps(said))
  labelled.prepared(folder_path, out)
  assert contents(out) == contents(records_path)


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


def test_what_the_source_has_no_more_is_made_no_more(folder_path, tmp_path):
  source = shutil.copytree(folder_path, tmp_path / 'in')
  labelled.prepared(source, tmp_path / 'out')
  for i in range(5):
    (source / 'train' / 'cat' / f'{i}.png').unlink()
  index = labelled.prepared(source, tmp_path / 'out')['train']
  assert [s['count'] for s in index['shards']] == [6, 6, 3]
  found = sorted(f.name for f in (tmp_path / 'out' / 'train').glob('*.array_record'))
  assert found == [s['name'] for s in index['shards']]


def imagenet(path, classes=1000):
  for split in ('train', 'validation'):
    for k in range(classes):
      labelled.write(
        path / split / f'n{k:08d}' / '1.png', labelled.encode(np.full((1, 1, 3), 9, 'u1'))
      )
  return path


def test_an_incomplete_imagenet_is_refused(tmp_path):
  source = imagenet(tmp_path / 'in')
  with pytest.raises(
    errors.DataError, match=r'training set has 1,281,167 pictures, but --split=train has 1,000;'
  ):
    labelled.prepared(source, tmp_path / 'out')
  assert not list((tmp_path / 'out').iterdir())
  indices = labelled.prepared(
    source, tmp_path / 'out', size=1, shard_size=500, allow_incomplete=True
  )
  assert indices['train']['class_names'][999] == 'n00000999'


def test_the_count_of_imagenet_is_that_of_the_training_pictures_that_are_kept():
  names = [f'n{k:08d}' for k in range(1000)]
  settings = prepare.Settings('x', 'y')
  prepare._check_imagenet(settings, names, 1_281_167)
  prepare._check_imagenet(settings, names[:999], 5)  # another set with such names
  prepare._check_imagenet(prepare.Settings('tfds:imagenet2012_subset/1pct', 'y'), ['a'], 5)
  for name in ('tfds:imagenet2012', 'tfds:imagenet2012:5.1.0'):
    with pytest.raises(errors.DataError, match='is ImageNet'):
      prepare._check_imagenet(prepare.Settings(name, 'y'), ['a'], 1_281_166)


def test_too_little_disk_is_told_before_anything_is_made(folder_path, tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(1, 1, 1000))
  with pytest.raises(errors.ConfigError, match=r'needs 0\.00 GiB more and .* are free; free space'):
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
    assert contents(small) == contents(records_path)
  finally:
    subprocess.run(['umount', small], check=True)


@pytest.mark.parametrize('flags, why', [
  (['--size=0'], '--size=0 must be from 1 to 4096'), (['--size=x'], 'invalid int value'),
  (['--channels=2'], r'--channels=2 must be 1 \(grey\) or 3'),
  (['--workers=0'], '--workers=0 must be'), (['--shard_size=0'], '--shard_size=0 must be'),
  (['--split=../x'], "--split='../x' names a folder"), (['--split=validation'], 'must differ'),
  (['--split='], "must differ from --split=''"), (['--sise=3'], 'unrecognized arguments'),
])  # fmt: skip
def test_wrong_flags_leave_with_2_and_touch_nothing(folder_path, tmp_path, capsys, flags, why):
  from gdistill import cli

  out = tmp_path / 'out'
  try:
    code = cli.main(['prepare', f'--source={folder_path}', f'--out={out}', *flags])
  except SystemExit as e:
    code = e.code
  said = capsys.readouterr().err
  assert code == 2 and re.search(why, said) and said.count('\n') == 1
  assert not out.exists()


@pytest.mark.parametrize('flags, code, why', [
  (['--source=/does/not/exist'], 3, '--source=/does/not/exist does not exist; name a folder'),
  (['--source=gs://bucket/x'], 2, 'must be a local path'),
  (['--source=tfds:no_such_set'], 3, '--source=tfds:no_such_set is no set that'),
  (['--held_out_split=test'], 3, '--source=.* named test/<class>/.*but train, validation; name'),
])  # fmt: skip
def test_wrong_sources_leave_nothing_behind(folder_path, tmp_path, capsys, flags, code, why):
  from gdistill import cli

  out = tmp_path / 'out'
  own = [] if flags[0].startswith('--source=') else [f'--source={folder_path}']
  assert cli.main(['prepare', *own, f'--out={out}', *flags]) == code
  said = capsys.readouterr().err
  assert re.search(why, said) and said.count('\n') == 1
  assert not out.exists()


def test_the_command_says_what_it_made_and_that_it_is_finished(folder_path, tmp_path):
  flags = '--size=12', '--shard_size=6', '--workers=1'
  code, said = run(*flags, source=folder_path, out=tmp_path / 'out')
  index = records.read_index(str(tmp_path / 'out' / 'train'))
  assert (
    code == 0 and f'20 pictures of 12 x 12, 3 classes, 0 skipped, digest {index["digest"]}' in said
  )
  assert re.search(r'29 in [\d.]+ s, \d+ a second', said)
  before = contents(tmp_path / 'out')
  code, said = run(*flags, source=folder_path, out=tmp_path / 'out')
  assert code == 0 and 'nothing to do' in said
  assert contents(tmp_path / 'out') == before


FLAGS = '--size=16', '--shard_size=5', '--workers=2'


@pytest.fixture(scope='module')
def undisturbed(large, tmp_path_factory):
  out = tmp_path_factory.mktemp('undisturbed') / 'out'
  began = time.monotonic()
  code, said = run(*FLAGS, source=large, out=out)
  assert code == 0, said
  return contents(out), time.monotonic() - began


def until_done(source, out, draw, most):
  """Kills the command after `draw()` seconds, `most` times; returns how often it still ran."""
  hits = 0
  for _ in range(most):
    process = subprocess.Popen(
      command(*FLAGS, source=source, out=out), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(draw())
    process.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 0), said
    hits += process.returncode != 0
  code, said = run(*FLAGS, source=source, out=out)
  assert code == 0, said
  return hits


@pytest.mark.parametrize('kills', [3, pytest.param(40, marks=pytest.mark.heavy)])
def test_killed_at_any_time_and_repeated_it_ends_with_the_same_bytes(
  large, undisturbed, tmp_path, kills
):
  expected, seconds = undisturbed
  rng = random.Random(kills)
  hits = 0
  for k in range(max(1, kills // 3)):
    out = tmp_path / f'out{k}'
    hits += until_done(large, out, lambda: rng.uniform(0.2, 1.0) * seconds, 3)
    assert contents(out) == expected
  print(f'{hits} kills')
  assert hits


def test_a_signal_stops_it_with_42_and_it_goes_on(large, undisturbed, tmp_path):
  process = subprocess.Popen(
    command(*FLAGS, source=large, out=tmp_path / 'out'), stderr=subprocess.PIPE,
    start_new_session=True,
  )  # fmt: skip
  while not list((tmp_path / 'out').rglob('*.array_record')):
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGSTOP)  # or it may be done before the second has started
  second = run(*FLAGS, source=large, out=tmp_path / 'out')
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
  os.killpg(process.pid, signal.SIGCONT)
  _, said = process.communicate(timeout=60)
  assert second[0] == 2 and 'is in use by' in second[1]
  assert process.returncode == 42, said
  assert said.decode().count('\n') == 1 and 'repeat the command' in said.decode()
  assert run(*FLAGS, source=large, out=tmp_path / 'out')[0] == 0
  assert contents(tmp_path / 'out') == undisturbed[0]


def test_a_worker_that_dies_is_told_and_nothing_is_lost(folder_path, tmp_path, monkeypatch):
  wanted = prepare.Settings(str(folder_path), str(tmp_path), size=12, shard_size=6)
  job = prepare.plan(wanted, labelled.look)
  monkeypatch.setattr(prepare, '_process', _dies)
  with pytest.raises(errors.DataError, match='a worker process died with exit code 7'):
    prepare.work(job, labelled.look, lambda done, speed: None)
  monkeypatch.undo()
  labelled.prepared(folder_path, tmp_path)


def _dies(*args):
  os._exit(7)
