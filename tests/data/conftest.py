"""The labelled pictures as every kind of source has them."""

import contextlib
import os
import tarfile
import zipfile

import labelled
import pytest


@pytest.fixture(scope='session')
def folder_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('pictures')
  for split in labelled.COUNTS:
    for name, pixels, _ in labelled.examples(split):
      labelled.write(path / name, labelled.encode(pixels))
  return path


@pytest.fixture(scope='session')
def archives(folder_path, tmp_path_factory):
  """{'tar', 'tar.xz', 'zip': path}."""
  at = tmp_path_factory.mktemp('archives')
  made = {kind: at / f'set.{kind}' for kind in ('tar', 'tar.xz', 'zip')}
  for kind, path in made.items():
    if kind == 'zip':
      with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for file in sorted(folder_path.rglob('*.png')):
          z.write(file, file.relative_to(folder_path))
    else:
      with tarfile.open(path, 'w:xz' if kind == 'tar.xz' else 'w') as t:
        t.add(folder_path, 'set')  # within one folder, as archives often are
  return made


@pytest.fixture(scope='session')
def records_path(folder_path, tmp_path_factory):
  path = tmp_path_factory.mktemp('records')
  labelled.prepared(folder_path, path)
  return path


@pytest.fixture(scope='session')
def tfds_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  found = {
    s: [(labelled.encode(p), k) for _, p, k in labelled.examples(s)] for s in labelled.COUNTS
  }
  labelled.write_tfds(path, found)
  return path


@pytest.fixture
def open_files():
  """A context manager that fails where files stay open."""

  @contextlib.contextmanager
  def check():
    before = set(os.listdir('/proc/self/fd'))
    yield
    assert len(os.listdir('/proc/self/fd')) <= len(before) + 1  # the listing's own

  return check
