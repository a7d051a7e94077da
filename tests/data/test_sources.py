"""Properties of every kind of source: order, splits, pickling, threads, open files."""

import dataclasses
import pickle
import shutil
from concurrent import futures

import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import pipeline

KINDS = ('folder', 'tar', 'tar.xz', 'zip', 'records', 'tfds', 'digits')


@pytest.fixture(params=KINDS)
def kind(request):
  return request.param


@pytest.fixture
def settings(kind, request):
  if kind == 'digits':
    return labelled.settings('digits', held_out=0.2)
  if kind in ('folder', 'records'):
    return labelled.settings(kind, request.getfixturevalue(f'{kind}_path'))
  if kind == 'tfds':
    return labelled.settings('tfds', request.getfixturevalue('tfds_path'), dataset='cifar10')
  return labelled.settings('folder', request.getfixturevalue('archives')[kind])


@pytest.fixture
def shape(kind):
  return (8, 8, 1) if kind == 'digits' else labelled.SHAPE


@pytest.fixture
def sources(settings, shape):
  return pipeline.load(settings, shape)


@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'digits'], indirect=True)
def test_examples_are_the_pictures_and_labels_in_order(sources):
  for data, split in zip(sources, labelled.COUNTS, strict=True):
    assert data.class_names == labelled.CLASSES
    expected = labelled.examples(split)
    assert len(data) == len(expected)
    for i, (_, pixels, label) in enumerate(expected):
      found = data[i]
      np.testing.assert_array_equal(found[0], pixels)
      assert found[1] == label


def test_examples_are_checked_and_of_the_shape_asked_for(sources, shape):
  for data in sources:
    for i in (0, len(data) - 1):
      pixels, label = data[i]
      assert pixels.dtype == np.uint8 and pixels.shape == shape and type(label) is int


def test_reading_again_gives_the_same(sources, settings, shape):
  again = pipeline.load.__wrapped__(settings, shape)
  for a, b in zip(sources, again, strict=True):
    assert a.fingerprint == b.fingerprint and len(a.fingerprint) == 16
    np.testing.assert_array_equal(a[1][0], b[1][0])


def test_both_splits_have_fingerprints_of_their_own(sources):
  assert sources[0].fingerprint != sources[1].fingerprint


def test_a_pickled_source_reads_the_same(sources):
  data = sources[0]
  data[0]  # opens a file
  copy = pickle.loads(pickle.dumps(data))  # noqa: S301
  np.testing.assert_array_equal(copy[3][0], data[3][0])


def test_threads_read_the_same(sources):
  data = sources[0]
  index = np.random.default_rng(0).integers(0, len(data), 400)
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda i: data[i][0], index))
  for i, pixels in zip(index, found, strict=True):
    np.testing.assert_array_equal(pixels, data[i][0])


def test_a_share_held_out_is_the_same_of_every_class_and_all_the_rest_is_left(settings, shape):
  whole = dataclasses.replace(settings, held_out=0.25)
  train, held = pipeline.load(whole, shape)
  kept = train.gather(range(len(train)))['label']
  out = held.gather(range(len(held)))['label']
  total = np.bincount(np.concatenate([kept, out]))
  if settings.name != 'digits':
    assert total.tolist() == list(labelled.COUNTS['train'])
  assert np.bincount(out).tolist() == [round(0.25 * n) for n in total]


def test_files_are_closed_when_the_source_is_gone(settings, shape, open_files):
  pipeline.load.__wrapped__(settings, shape)[0][0]  # imports and threads stay open
  with open_files():
    for _ in range(30):
      data = pipeline.load.__wrapped__(settings, shape)[0]
      pickle.loads(pickle.dumps(data))[0]  # noqa: S301
      data[0]
      del data


@pytest.mark.parametrize('kind', ['folder', 'records'], indirect=True)
def test_two_splits_with_other_classes_are_refused(kind, tmp_path):
  pictures = tmp_path / 'pictures'
  for name in ('train/ape/1.png', 'validation/bee/1.png'):
    labelled.write(pictures / name, labelled.encode(labelled.pixels_of('train', 0, 0)))
  path = pictures
  if kind == 'records':
    path = tmp_path / 'records'
    for split in ('train', 'validation'):
      labelled.prepared(pictures, tmp_path / split, split=split, held_out_split='')
      shutil.copytree(tmp_path / split / split, path / split)
  with pytest.raises(
    errors.DataError,
    match=r"'train' and 'validation' differ.*only 'train' has 'ape'; only 'validation' has 'bee'",
  ):
    pipeline.load(labelled.settings(kind, path), labelled.SHAPE)
