"""Records hold the latents of both flips, masks and captions; an unreadable picture stops it."""

import dataclasses

import encoded
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import latents


def test_captions_are_embedded_once_each_and_a_deterministic_encoder_keeps_no_deviation(tmp_path):
  seen = []

  def counted(captions):
    seen.extend(captions)
    return encoded.embeddings(captions)

  texts = dataclasses.replace(encoded.TEXTS, encode=counted)
  index, count = encoded.made(
    tmp_path, texts=texts, encoder=dataclasses.replace(encoded.ENCODER, posterior=False)
  )
  assert sorted(filter(None, seen)) == sorted(set(encoded.CAPTIONS)) and count == encoded.COUNT
  assert [s['count'] for s in index['text_shards']] == [4]
  found = latents.load(str(tmp_path), encoded.SHAPE)
  assert found.gather([0, 1])['latents'].shape == (2, 2, 1, *encoded.SHAPE)


def test_without_captions_there_is_no_text(tmp_path):
  index, _ = encoded.made(tmp_path, texts=None)
  assert index['text'] is None and index['text_shards'] == []
  assert latents.load(str(tmp_path), encoded.SHAPE).gather([1]).keys() == {'latents', 'label'}


def test_masked_latents_are_those_of_their_picture_flip_and_number(tmp_path, monkeypatch):
  def masked(pixels, numbers):  # a mask of ones; the mean plus the number
    latent = encoded.posterior(pixels)[0] + numbers[:, None, None, None].astype(np.float32)
    return np.concatenate([np.ones((*latent.shape[:3], 1), np.float32), latent], -1)

  index, _ = encoded.made(
    tmp_path, encoder=dataclasses.replace(encoded.ENCODER, masks=2, masked=masked)
  )
  assert index['masks'] == 2
  monkeypatch.setattr(latents, '_IN_MEMORY', 0)
  found = latents.load(str(tmp_path), encoded.SHAPE)
  batch = found.gather(np.arange(encoded.COUNT)[::-1])
  assert batch['masked'].shape[1:] == found.fields['masked'][0] == (2, 2, 2, 3, 6)
  for flip, pixels in enumerate((encoded.PIXELS, encoded.PIXELS[:, :, ::-1])):
    for k in range(2):
      numbers = (np.arange(encoded.COUNT) * 2 + flip) * 2 + k
      encoded.same(batch['masked'][::-1, flip, k], encoded.bf16(masked(pixels, numbers)))
  with pytest.raises(errors.DataError, match=r"number of masks \(2\) than this run's \(none\)"):
    encoded.job(tmp_path).check()


def test_a_picture_that_cannot_be_read_stops_it_or_is_left_out_and_what_is_made_stays(tmp_path):
  bad = encoded.with_damage({5, 10})
  words = (
    r'^5\.png is truncated; .*; or set latents\.skip_corrupt=True .*; finished shards are kept$'
  )
  with pytest.raises(errors.DataError, match=words):
    encoded.made(tmp_path, examples=bad)
  assert encoded.aged(tmp_path) == {'latents-00000.array_record'}
  index, count = encoded.made(tmp_path, examples=bad, skip_corrupt=True)
  assert count == 7 and 'latents-00000.array_record' not in encoded.made_since(tmp_path)
  assert [s['count'] for s in index['shards']] == [4, 3, 2]
  assert (index['count'], index['left_out']) == (9, 2)
  kept = [i for i in range(encoded.COUNT) if i not in (5, 10)]
  found = latents.load(str(tmp_path), encoded.SHAPE)
  batch = found.gather(np.arange(9))
  assert len(found) == 9
  np.testing.assert_array_equal(batch['label'], encoded.LABELS[kept])
  encoded.same(batch['latents'][:, 0, 0], encoded.bf16(encoded.posterior(encoded.PIXELS[kept])[0]))
  encoded.same(
    batch['text'], encoded.bf16(encoded.embeddings([encoded.CAPTIONS[i] for i in kept])[0])
  )
  assert encoded.made(tmp_path, examples=bad)[1] == 0  # the shards are finished: no error


@pytest.mark.parametrize('value', [np.nan, np.inf, 3.4e38])
def test_latents_that_are_not_finite_are_refused_by_their_pictures(tmp_path, value):
  def encode(pixels):
    mean, std = encoded.posterior(pixels)
    mean[(pixels == encoded.PIXELS[8]).all((1, 2, 3))] = value
    return mean, std

  with pytest.raises(
    errors.DataError, match='examples 8 to 10 are not finite: the weights that latents'
  ):
    encoded.made(tmp_path, encoder=dataclasses.replace(encoded.ENCODER, encode=encode))
  assert encoded.aged(tmp_path) == {'latents-00000.array_record', 'latents-00001.array_record'}


@pytest.mark.parametrize('value', [np.nan, -np.inf, 3.4e38])  # the last overflows bfloat16
def test_embeddings_that_are_not_finite_are_refused_by_their_captions(tmp_path, value):
  def encode(captions):
    hidden, mask = encoded.embeddings(captions)
    hidden[[c == 'picture 3' for c in captions], 4, 6] = value
    return hidden, mask

  words = r'embeddings of captions 3 to 3 are not finite: the weights that latents\.text names'
  with pytest.raises(errors.DataError, match=words):
    encoded.made(tmp_path, texts=dataclasses.replace(encoded.TEXTS, encode=encode))
