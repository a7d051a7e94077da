"""Tests of files in a workdir: written whole or not at all, read with clear errors."""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import threading

import numpy as np
import pytest
from etils.epath import backend

from gdistill import errors
from gdistill.workdir import storage


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
  file = tmp_path / 'a' / 'x.json'
  storage.write_json(file, {'a': 1})

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(errors.CheckpointError, match=r'x.json: .*No space left.*; free disk space$'):
    storage.write_json(file, {'a': 2})
  assert storage.read_json(file) == {'a': 1}
  assert os.listdir(tmp_path / 'a') == ['x.json']


def test_a_write_without_permission_is_not_told_to_free_space(tmp_path, monkeypatch):
  def refused(*args):
    raise PermissionError(13, 'Permission denied')

  for function, call in (('replace', storage.write_bytes), ('link', storage.write_once)):
    monkeypatch.setattr(os, function, refused)
    with pytest.raises(errors.CheckpointError, match=r'Permission denied; fix the permissions of'):
      call(tmp_path / 'x', b'')
  assert os.listdir(tmp_path) == []


def test_nothing_is_visible_before_it_is_on_the_disk(tmp_path, monkeypatch):
  seen = []
  fsync = os.fsync

  def look(fd):
    seen.append(storage.list_dir(tmp_path))
    fsync(fd)

  monkeypatch.setattr(os, 'fsync', look)
  storage.write_bytes(tmp_path / 'x', b'abc')
  storage.write_once(tmp_path / 'y', b'abc')
  # What the folder lists at each fsync: of file x, of the folder, of file y, of the folder.
  assert seen == [[], ['x'], ['x'], ['x', 'y']]


def test_write_once_keeps_the_first(tmp_path):
  assert storage.write_once(tmp_path / 'x', b'one')
  assert not storage.write_once(tmp_path / 'x', b'two')
  assert (tmp_path / 'x').read_bytes() == b'one'
  assert os.listdir(tmp_path) == ['x']


def test_write_once_works_without_hard_links(tmp_path, monkeypatch):
  def refused(*args):
    raise PermissionError(1, 'Operation not permitted')

  monkeypatch.setattr(os, 'link', refused)
  test_write_once_keeps_the_first(tmp_path)


def test_of_many_writers_one_creates_the_file(tmp_path):
  wins = []

  def write(i):
    if storage.write_once(tmp_path / 'x', str(i).encode()):
      wins.append(str(i))

  threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
  [t.start() for t in threads]
  [t.join() for t in threads]
  assert wins == [storage.read_text(tmp_path / 'x')]


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path):
  storage.write_bytes(tmp_path / 'x', b'')
  with pytest.raises(errors.CheckpointError, match='cannot write'):
    storage.write_once(tmp_path / 'x' / 'y', b'')


@pytest.mark.parametrize(
  'data, verb', [(b'{"a": ', 'parse'), (b'', 'parse'), (b'\xff', 'read'), (b'[' * 99999, 'parse')]
)
def test_bad_json_names_the_file(tmp_path, data, verb):
  (tmp_path / 'x.json').write_bytes(data)
  with pytest.raises(errors.CheckpointError, match=f'cannot {verb} .*x.json: .*; restore'):
    storage.read_json(tmp_path / 'x.json')


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(errors.CheckpointError, match=r'cannot read .*x.json'):
    storage.read_json(tmp_path / 'x.json')


def test_json_is_canonical_and_has_no_nan():
  @dataclasses.dataclass
  class Point:
    y: int
    x: float

  value = {'b': float('nan'), 'a': [np.float32(0.5), -np.inf, np.arange(2)], 'p': Point(1, 2.0)}
  text = storage.dumps(value)
  assert json.loads(text) == {'a': [0.5, None, [0, 1]], 'b': None, 'p': {'x': 2.0, 'y': 1}}
  assert text == storage.dumps(dict(reversed(value.items())))
  with pytest.raises(TypeError, match='object'):
    storage.dumps(object())


def test_folders_are_listed_and_removed(tmp_path):
  assert storage.list_dir(tmp_path / 'none') == []
  storage.write_bytes(tmp_path / 'a' / 'b' / 'c', b'123')
  storage.write_bytes(tmp_path / 'a' / 'd', b'')
  assert storage.files(tmp_path) == {'a/b/c': 3, 'a/d': 0}
  storage.remove_tree(tmp_path / 'a')
  storage.remove_tree(tmp_path / 'a')
  assert not storage.exists(tmp_path / 'a')


@pytest.mark.parametrize(
  'ask',
  [storage.exists, storage.read_bytes, storage.digest, storage.list_dir, storage.remove_tree],
)
def test_what_others_wrote_in_an_object_store_is_seen(monkeypatch, ask):
  asked = []

  class Store:
    def __getattr__(self, name):
      asked.append(name)
      return self.answer

    def answer(self, *given, **more):
      if asked[-1] != 'invalidate_cache':
        raise FileNotFoundError

  monkeypatch.setattr(backend.fsspec_backend, 'fs', lambda p: Store())
  with contextlib.suppress(errors.CheckpointError, FileNotFoundError):
    ask('s3://bucket/x')
  assert asked[0] == 'invalidate_cache' and len(asked) > 1


def test_the_digest_is_of_the_whole_file(tmp_path):
  data = bytes(3 * 2**20)
  (tmp_path / 'x').write_bytes(data + b'1')
  assert storage.digest(tmp_path / 'x') == hashlib.sha256(data + b'1').hexdigest()


def test_a_path_that_can_be_no_folder_is_refused_before_anything_is_written(tmp_path):
  (tmp_path / 'x').write_bytes(b'')
  for name, words in (
    ('x', '/x is not a folder; choose another --out'), ('x/y/z', '/x is not a folder'),
    ('é' * 128, 'is not a valid path: a name in it is longer than 255 bytes'), ('a\0', 'null'),
  ):  # fmt: skip
    with pytest.raises(errors.ConfigError, match=words):
      storage.check_writable('--out', f'{tmp_path}/{name}')
  storage.check_writable('--out', f'{tmp_path}/{"é" * 127}/new')
  assert os.listdir(tmp_path) == ['x']


def test_local_places_are_absolute_and_others_are_left_alone(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert storage.path('runs/digits') == tmp_path / 'runs' / 'digits'
  assert str(storage.path('gs://bucket/runs')) == 'gs://bucket/runs'
  with pytest.raises(
    errors.ConfigError, match='ftp://x/y must be a local path or begin with gs:// or'
  ):
    storage.path('ftp://x/y')


@pytest.mark.parametrize(('scheme', 'extra'), [('gs', 'gcs'), ('s3', 's3')])
def test_a_store_whose_package_is_missing_is_named_with_it(monkeypatch, scheme, extra):
  monkeypatch.setattr(storage.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match=rf'--workdir={scheme}://b/x .*\[{extra}\]'):
    storage.check_writable('--workdir', f'{scheme}://b/x')
  monkeypatch.setattr(storage.importlib.util, 'find_spec', lambda name: object())
  storage.check_writable('--workdir', f'{scheme}://b/x')


def test_no_folder_for_temporary_files_is_one_line(monkeypatch):
  def none():
    raise FileNotFoundError(2, 'No usable temporary directory found')

  monkeypatch.setattr('tempfile.gettempdir', none)
  with pytest.raises(errors.ConfigError, match='set the environment variable TMPDIR'):
    storage.temporary_root()


def test_json_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path):
  (tmp_path / 'x.json').write_text('{"a": "é"}', 'utf-8-sig')
  assert storage.read_json(tmp_path / 'x.json') == {'a': 'é'}


@pytest.mark.parametrize('folder', ['/none/caf\udce9', 'caf\udce9/run', 'gs://caf\udce9'])
def test_a_folder_whose_name_is_no_utf_8_is_refused_in_ascii(folder, monkeypatch):
  words = r"--out='.*caf.udce9.*' has bytes that are no characters in utf-8, .* these bytes$"
  with pytest.raises(errors.ConfigError, match=words) as e:
    storage.check_writable('--out', folder)
  assert str(e.value).isascii()
  monkeypatch.setattr(sys, 'getfilesystemencoding', lambda: 'ascii')
  with pytest.raises(errors.ConfigError, match=r'no characters in ascii.*set .* PYTHONUTF8=1$'):
    storage.check_writable('--out', folder)
