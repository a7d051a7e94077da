"""Captioned pictures as the source of a recipe: splits, held-out share, captions, notes."""

import io
import pickle
import tarfile

import labelled
import numpy as np
import pytest

from gdistill.data import pipeline
from gdistill.data import source

COUNT = 20


def pixels(i):
  return labelled.pixels_of('train', 1, i)


def members(first, last):
  for i in range(first, last):
    yield f'{i:03d}.png', labelled.encode(pixels(i))
    if i != 3:  # picture 3 has no caption
      yield f'{i:03d}.txt', f'picture {i}'.encode()


def folder(path, first=0, last=COUNT):
  for name, data in members(first, last):
    labelled.write(path / name, data)


def shards(path, first=0, last=COUNT):
  path.mkdir(parents=True)
  with tarfile.open(path / '000.tar', 'w') as t:
    for name, data in members(first, last):
      info = tarfile.TarInfo(name)
      info.size = len(data)
      t.addfile(info, io.BytesIO(data))


MADE = {'captions': folder, 'webdataset': shards}


def load(name, path, **more):
  return pipeline.load(labelled.settings(name, path, **more), labelled.SHAPE)


def numbers(found):
  """Returns the numbers in the captions, after comparing every picture with its caption."""
  out = []
  for i in range(len(found)):
    number = int(found.read.caption(i).removeprefix('picture '))
    picture, label = found[i]
    np.testing.assert_array_equal(picture, pixels(number))
    assert label == 0
    out.append(number)
  return out


@pytest.mark.parametrize('name', MADE)
def test_a_share_is_held_out_once_and_for_all(tmp_path, name):
  MADE[name](tmp_path / 'set')
  for path in (tmp_path / 'set', *([f'{tmp_path}/set/*.tar'] if name == 'webdataset' else [])):
    train, held = load(name, path, held_out=0.25)
    assert isinstance(train, source.Source) and train.class_names == ('pictures',)
    kept, out = numbers(train), numbers(held)
    assert len(out) == 5 and sorted(kept + out) == [i for i in range(COUNT) if i != 3]
    assert kept == sorted(kept) and out == sorted(out) and out != list(range(15, 20))
    again = load(name, path, held_out=0.25, threads=3)  # threads do not change the draw
    assert [x.fingerprint for x in again] == [train.fingerprint, held.fingerprint]
    assert train.fingerprint != held.fingerprint
    worker = pickle.loads(pickle.dumps(train))  # noqa: S301 - a worker's copy
    assert numbers(worker) == kept


@pytest.mark.parametrize('name', MADE)
def test_subfolders_are_splits(tmp_path, name):
  MADE[name](tmp_path / 'set' / 'train', 0, 12)
  MADE[name](tmp_path / 'set' / 'validation', 12)
  train, held = load(name, tmp_path / 'set')
  assert numbers(train) == [i for i in range(12) if i != 3]
  assert numbers(held) == list(range(12, COUNT))
  # With a share to hold out, the training split alone is divided.
  train, held = load(name, tmp_path / 'set', held_out=0.5)
  assert sorted(numbers(train) + numbers(held)) == [i for i in range(12) if i != 3]


def test_what_is_left_out_is_noted_with_the_training_pictures(tmp_path):
  folder(tmp_path / 'set')
  train, _ = load('captions', tmp_path / 'set', held_out=0.25)
  assert len(train.read.notes) == 1 and '1 picture without a caption' in train.read.notes[0]
  assert "'003.png'" in train.read.notes[0]


@pytest.mark.parametrize('name', MADE)
def test_batches_and_subsets_keep_their_captions(tmp_path, name):
  MADE[name](tmp_path / 'set')
  train, _ = load(name, tmp_path / 'set', held_out=0.25)
  part = train.subset(np.array([4, 0, 9]))
  assert numbers(part) == [numbers(train)[i] for i in (4, 0, 9)]
  found = pipeline.batch(train, (0,), 0, 4)
  assert found.keys() == {'pixels', 'label', 'id'} and found['pixels'].shape == (4, *labelled.SHAPE)
