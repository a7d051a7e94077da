"""Tests of the classifier: accurate on the digits, and the same parameters every time."""

import functools

import numpy as np
import pytest
from sklearn import datasets

from gdistill import errors
from gdistill.evaluation.features import classifier
from gdistill.evaluation.features import extractors


@functools.cache
def digits():
  bunch = datasets.load_digits()
  order = np.random.default_rng(0).permutation(len(bunch.target))
  pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  return pixels[order], bunch.target[order]


@functools.cache
def trained():
  pixels, labels = digits()
  return classifier.train_classifier(pixels[:1400], labels[:1400], 10, seed=0)


def extract(params, pixels, **more):
  return extractors.extract(extractors.of_classifier(params), pixels, **more)


@pytest.mark.full
def test_held_out_digits_are_told_apart():
  pixels, labels = digits()
  out = extract(trained(), pixels[1400:])
  assert (out['logits'].argmax(1) == labels[1400:]).mean() >= 0.97


@pytest.mark.full
def test_two_trainings_agree_to_the_bit():
  pixels, labels = digits()
  again = classifier.train_classifier(pixels[:1400], labels[:1400], 10, seed=0)
  assert classifier.to_bytes(again) == classifier.to_bytes(trained())
  for name, value in trained().items():
    assert value.dtype == np.float32 and value.tobytes() == again[name].tobytes()
  assert classifier.digest(again) == classifier.digest(trained())


def test_the_digest_sees_every_name_shape_and_bit():
  params = {'a': np.zeros(4, np.float32), 'b': np.ones(2, np.float32)}
  changed = [
    {'a': params['a'], 'c': params['b']},
    {'a': params['a'].reshape(2, 2), 'b': params['b']},
    {'a': params['a'].view(np.int32), 'b': params['b']},
    {'a': params['a'], 'b': np.nextafter(params['b'], 2)},
  ]
  assert len({classifier.digest(p) for p in [params, *changed]}) == 5
  assert classifier.digest(dict(reversed(params.items()))) == classifier.digest(params)


@pytest.mark.full
def test_the_batch_size_and_the_other_rows_change_nothing():
  pixels, _ = digits()
  whole = extract(trained(), pixels[:23])
  parts = extract(trained(), pixels[:23], batch=7)  # 23 = 3 * 7 + 2: the last batch is padded
  assert whole['features'].shape == (23, classifier.FEATURE_SIZE) and whole['logits'].shape == (
    23,
    10,
  )
  assert whole['features'].dtype == whole['logits'].dtype == np.float32
  np.testing.assert_allclose(parts['features'], whole['features'], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(parts['logits'], whole['logits'], rtol=1e-5, atol=1e-5)
  backwards = extract(trained(), pixels[22::-1])
  np.testing.assert_allclose(backwards['features'][::-1], whole['features'], rtol=1e-5, atol=1e-5)


def test_the_logits_are_linear_in_the_features():
  pixels, _ = digits()
  params, out = trained(), extract(trained(), pixels[:50])
  by_hand = out['features'] @ params['logits/kernel'] + params['logits/bias']
  np.testing.assert_allclose(out['logits'], by_hand, rtol=1e-4, atol=1e-4)


def test_no_pictures_give_no_features():
  out = extract(trained(), np.zeros((0, 8, 8, 1), np.uint8))
  assert out['features'].shape == (0, classifier.FEATURE_SIZE) and out['logits'].shape == (0, 10)


def test_parameters_survive_their_file():
  back = classifier.from_bytes(classifier.to_bytes(trained()))
  assert classifier.digest(back) == classifier.digest(trained())


def test_a_file_with_code_in_it_is_refused():
  bad = classifier.to_bytes({'a': np.array([{'not': 'numbers'}], object)})
  with pytest.raises(ValueError, match='allow_pickle=False'):
    classifier.from_bytes(bad)


def test_other_sizes_and_colours_work(monkeypatch):
  monkeypatch.setattr(classifier, '_UPDATES', 3)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (12, 10, 7, 3)).astype(np.uint8)
  params = classifier.train_classifier(pixels, np.arange(12) % 3, 3, seed=0)
  out = extract(params, pixels, batch=8)
  assert out['features'].shape == (12, classifier.FEATURE_SIZE) and out['logits'].shape == (12, 3)


def test_shifts_move_the_whole_picture_by_one_pixel_at_most():
  pixels = np.zeros((1, 8, 8, 1), np.uint8)
  pixels[0, 3, 4] = 200
  x, label = next(classifier._batches(pixels, np.array([5]), seed=0))
  at = np.argwhere(x[..., 0] == 200)
  assert len(at) == len(x) and (label == 5).all()
  assert {tuple(p) for p in at[:, 1:]} == {(i, j) for i in (2, 3, 4) for j in (3, 4, 5)}


def test_wrong_inputs_are_named():
  pixels = np.zeros((4, 8, 8, 1), np.uint8)
  with pytest.raises(ValueError, match='give pixels as uint8'):
    extract(trained(), pixels.astype(np.float32))
  with pytest.raises(ValueError, match='one label for each of 4 images'):
    classifier.train_classifier(pixels, np.zeros(3, int), 2)
  with pytest.raises(ValueError, match='labels run from 0 to 2, and must be from 0 to 1'):
    classifier.train_classifier(pixels, np.array([0, 1, 2, 0]), 2)


def test_who_is_told_to_stop_does_not_wait_for_its_end():
  pixels, labels = digits()
  looks = []

  def look():
    looks.append(1)
    if len(looks) == 3:
      raise errors.Preempted('SIGTERM')

  with pytest.raises(errors.Preempted):
    classifier.train_classifier(pixels[:200], labels[:200], 10, look=look)
  assert len(looks) == 3
