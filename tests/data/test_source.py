"""Examples are checked; subsets, draws and labels are consistent."""

import dataclasses
import re

import numpy as np
import pytest

from gdistill import errors
from gdistill.data import pictures
from gdistill.data import source


def made_of(pixels, label, shape=(2, 2, 1), classes=('a', 'b')):
  return source.Source(lambda i: (pixels, label), 5, shape, classes, 'f')


@pytest.mark.parametrize('pixels, why', [
  (np.zeros((2, 2, 1), np.float32), r'example 3 is float32\[2, 2, 1\], not uint8'),
  (np.zeros((2, 3, 1), np.uint8), r'uint8\[2, 3, 1\], not uint8\[2, 2, 1\]'),
  (np.zeros((2, 2, 3), np.uint8), r'uint8\[2, 2, 3\], not'),
])  # fmt: skip
def test_pictures_of_another_kind_are_refused(pixels, why):
  with pytest.raises(errors.DataError, match=why):
    made_of(pixels, 0)[3]


@pytest.mark.parametrize('label', [-1, 2, 1000])
def test_labels_out_of_range_are_refused(label):
  with pytest.raises(
    errors.DataError,
    match=f'example 3 has label {label}; the 2 classes .* are 0 to 1; prepare',
  ):
    made_of(np.zeros((2, 2, 1), np.uint8), label)[3]


@pytest.mark.parametrize('label', [-1, 2])
def test_labels_out_of_range_in_memory_are_refused_at_once(label):
  with pytest.raises(errors.DataError, match=f'example 3 has label {label}'):
    source.in_memory(np.zeros((5, 2, 2, 1), np.uint8), np.array([0, 1, 0, label, 7]), ('a', 'b'))
  with pytest.raises(errors.DataError, match='example 0 is float32'):
    source.in_memory(np.zeros((5, 2, 2, 1), np.float32), np.zeros(5, np.int32), ('a', 'b'))


def test_examples_in_memory_are_gathered_as_one_by_one():
  rng = np.random.default_rng(0)
  pixels, labels = rng.integers(0, 256, (9, 2, 3, 1), np.uint8), rng.integers(0, 2, 9)
  part = source.in_memory(pixels, labels, ('a', 'b')).subset([8, 3, 3, 0]).subset([2, 0, 1])
  found = part.gather(range(3))
  np.testing.assert_array_equal(found['pixels'], pixels[[3, 8, 3]])
  np.testing.assert_array_equal(found['label'], labels[[3, 8, 3]])
  assert found['label'].dtype == np.int32
  for i in range(3):
    np.testing.assert_array_equal(part[i][0], found['pixels'][i])
    assert part[i][1] == found['label'][i]


def test_a_subset_has_its_examples_in_its_order_and_another_fingerprint():
  pixels = np.arange(6, dtype=np.uint8)[:, None, None, None]
  whole = source.in_memory(pixels, np.zeros(6, np.int32), ('a',))
  part = whole.subset([4, 1])
  assert [int(part[i][0].item()) for i in range(2)] == [4, 1]
  assert len({whole.fingerprint, part.fingerprint, whole.subset([1, 4]).fingerprint}) == 3
  assert part.subset([1])[0][0].item() == 1


def test_a_fingerprint_tells_where_one_string_ends():
  assert source.fingerprint(['ab', 'c']) != source.fingerprint(['a', 'bc'])


def test_some_are_drawn_once_and_for_all():
  pixels = np.arange(50, dtype=np.uint8)[:, None, None, None]
  data = source.in_memory(pixels, np.zeros(50, np.int32), ('a',))
  first, second = data.some(7)[0].ravel(), data.some(7)[0].ravel()
  np.testing.assert_array_equal(first, second)
  assert len(set(first.tolist())) == 7 and (np.diff(first) > 0).all()
  assert data.some(50)[0].ravel().tolist() == list(range(50))


def with_a_tiny_and_a_damaged_picture():
  def read(i):
    if i in (1, 2, 3):
      raise (pictures.TooSmall if i != 3 else errors.DataError)(f'picture {i}')
    return np.full((2, 2, 1), i, np.uint8), i % 2

  return source.Source(read, 7, (2, 2, 1), ('a', 'b'), 'f')


def test_tiny_pictures_that_are_found_late_are_left_out_of_batches_and_draws():
  data = with_a_tiny_and_a_damaged_picture()
  with pytest.raises(errors.DataError, match='picture 3'):
    list(data.batches(2))
  data = dataclasses.replace(data, leaves_out=errors.DataError)
  found = [(i.tolist(), b['pixels'][:, 0, 0, 0].tolist()) for i, b in data.batches(2)]
  assert found == [([0], [0]), ([4, 5], [4, 5]), ([6], [6])]
  pixels, labels = data.subset(np.array([6, 2, 5])).some(9)
  assert pixels[:, 0, 0, 0].tolist() == [6, 5] and labels.tolist() == [0, 1]
  with pytest.raises(errors.DataError, match='all examples are too small or unreadable'):
    data.subset(np.array([1, 2])).some(9)


def test_labels_are_asked_of_what_knows_them_and_pictures_are_decoded_only_without():
  known = np.array([2, 0, 1, 1, 0])

  class Reads:
    def __call__(self, i):
      raise AssertionError('a picture was decoded')

  class Numbered(Reads):
    labels = known

  class Asked(Reads):
    def label(self, i):
      return known[i]

  for read in (Numbered(), Asked(), lambda i: (np.zeros((2, 2, 1), np.uint8), int(known[i]))):
    found = source.Source(read, 5, (2, 2, 1), ('a', 'b', 'c'), 'x')
    np.testing.assert_array_equal(source.labels(found), known)
    part = found.subset(np.array([4, 2, 0])).subset(np.array([2, 1]))
    np.testing.assert_array_equal(source.labels(part), [2, 1])


def test_classes_that_look_the_same_are_told_once():
  names = ('\xe9t\xe9', 'bee', 'e\u0301te\u0301')
  one = source.in_memory(np.zeros((3, 2, 2, 3), np.uint8), np.arange(3), names)
  assert source.notes(one, one) == (
    '2 classes have names that look the same and differ in their Unicode form: '
    f"'{names[0]}' ('\\xe9t\\xe9'), '{names[2]}' ('e\\u0301te\\u0301'); if they are one class, put "
    'their pictures into one folder',
  )
  assert source.notes(dataclasses.replace(one, class_names=('a', 'b', 'c'))) == ()


def test_splits_whose_classes_look_the_same_are_told_apart():
  train = source.in_memory(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, int), ('\xe9t\xe9',))
  held = dataclasses.replace(train, class_names=('e\u0301te\u0301',))
  with pytest.raises(
    errors.DataError, match='two ways to write one name; give the two splits'
  ) as e:
    source.same_classes(train, held, 'data.path=x', ('train', 'test'))
  assert r"('\xe9t\xe9')" in str(e.value) and r"('e\u0301te\u0301')" in str(e.value)
  train, held = (
    dataclasses.replace(train, class_names=names)
    for names in (('n01440764', 'n01443537', 'x'), ('tench', 'goldfish', 'x'))
  )
  said = "'n01440764' and 'tench' are two ways to write one name (1 more names differ so); give"
  with pytest.raises(errors.DataError, match=re.escape(said)):
    source.same_classes(train, held, 'data.path=x', ('train', 'test'))
