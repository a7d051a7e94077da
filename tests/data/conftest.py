"""The labelled pictures in every kind of source, and the cache of latents of encoded.py."""

import contextlib
import os
import tarfile
import zipfile

import encoded
import labelled
import numpy as np
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
  """Returns {'tar', 'tar.xz', 'zip': path} of archives of the labelled pictures."""
  at = tmp_path_factory.mktemp('archives')
  made = {kind: at / f'set.{kind}' for kind in ('tar', 'tar.xz', 'zip')}
  for kind, path in made.items():
    if kind == 'zip':
      with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for file in sorted(folder_path.rglob('*.png')):
          z.write(file, file.relative_to(folder_path))
    else:
      with tarfile.open(path, 'w:xz' if kind == 'tar.xz' else 'w') as t:
        t.add(folder_path, 'set')  # under one top folder, as in many archives
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


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
  """Returns a finished cache folder and its index."""
  out = tmp_path_factory.mktemp('latents') / 'made' / 'deep'
  index, _ = encoded.made(out)
  return out, index


@pytest.fixture
def damaged_cache(tmp_path):
  """Returns a cache with one flipped bit in the latents of example 5, record 1 of shard 1."""
  encoded.made(tmp_path)
  file = tmp_path / 'latents-00001.array_record'
  batch = np.stack([encoded.PIXELS[[4, 5, 6]], encoded.PIXELS[[4, 5, 6], :, ::-1]])
  views = [np.stack(encoded.posterior(p), 1)[1] for p in batch]
  data, place = bytearray(file.read_bytes()), -1
  place = data.find(encoded.bf16(np.stack(views)).tobytes()[:16])
  assert place > 0
  data[place + 5] ^= 8
  file.write_bytes(data)
  return tmp_path


@pytest.fixture
def open_files():
  """Returns a context manager that fails if files stay open at its end."""

  @contextlib.contextmanager
  def check():
    before = set(os.listdir('/proc/self/fd'))
    yield
    assert len(os.listdir('/proc/self/fd')) <= len(before) + 1  # 1: the listing itself

  return check
