"""Encoded latents are read back bit for bit, in memory or from shards; damage is named."""

import pickle

import encoded
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import latents


@pytest.mark.parametrize('memory', [2**29, 0])
def test_both_flips_and_the_captions_embeddings_come_back_in_bfloat16(cache, monkeypatch, memory):
  monkeypatch.setattr(latents, '_IN_MEMORY', memory)
  found = latents.load(str(cache[0]), encoded.SHAPE)
  assert (len(found), found.shape, found.class_names) == (
    encoded.COUNT,
    encoded.SHAPE,
    ('ape', 'bee', 'cat'),
  )
  assert found.in_memory == bool(memory) and found.views == (2, 2)
  batch = found.gather(np.arange(encoded.COUNT))
  for flip, pixels in enumerate((encoded.PIXELS, encoded.PIXELS[:, :, ::-1])):
    # In batches of three, as in the cache: the last bits of a matrix product depend on its rows.
    padded = np.concatenate([pixels, pixels[-2:], pixels[-2:-1]])[:12]
    for part in range(2):
      expected = np.concatenate(
        [encoded.posterior(padded[i : i + 3])[part] for i in range(0, 12, 3)]
      )
      encoded.same(batch['latents'][:, flip, part], encoded.bf16(expected[: encoded.COUNT]))
  np.testing.assert_array_equal(batch['label'], encoded.LABELS)
  hidden, mask = encoded.embeddings(encoded.CAPTIONS)
  encoded.same(batch['text'], encoded.bf16(hidden))
  np.testing.assert_array_equal(batch['text_mask'], mask)
  assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == {
    k: (shape, np.dtype(kind)) for k, (shape, kind) in found.fields.items()
  }


def test_a_batch_is_its_examples_and_a_worker_reads_the_same(cache, monkeypatch):
  monkeypatch.setattr(latents, '_IN_MEMORY', 0)
  found = latents.load(str(cache[0]), encoded.SHAPE)
  index = np.array([7, 0, 10, 7])
  batch = found.gather(index)
  for place, i in enumerate(index):
    equal(found.gather([i]), {k: v[place : place + 1] for k, v in batch.items()})
  worker = pickle.loads(pickle.dumps(found))  # noqa: S301 - a worker's copy
  equal(worker.gather(index), batch)
  assert worker.fingerprint == found.fingerprint == cache[1]['digest'][:16]


def equal(found, expected):
  assert found.keys() == expected.keys()
  for key in expected:
    np.testing.assert_array_equal(found[key], expected[key], key)


def test_a_damaged_shard_is_named_when_read(damaged_cache, monkeypatch):
  words = r'record 1 of .*latents-00001\.array_record cannot be read: .*; copy the file again, or '
  with pytest.raises(
    errors.DataError, match=words + 'remove the file and repeat `gdistill encode`'
  ):
    latents.load(str(damaged_cache), encoded.SHAPE)
  monkeypatch.setattr(latents, '_IN_MEMORY', 0)
  found = latents.load(str(damaged_cache), encoded.SHAPE)
  found.gather([4, 6])
  with pytest.raises(errors.DataError, match=words):
    found.gather([4, 5])


def test_a_damaged_embedding_and_a_shard_in_anothers_place_are_named(tmp_path):
  encoded.made(tmp_path)
  file = tmp_path / 'texts-00000.array_record'
  hidden, _ = encoded.embeddings(['picture 2'])
  data = bytearray(file.read_bytes())
  data[data.index(encoded.bf16(hidden[0]).tobytes()) + 3] ^= 1
  file.write_bytes(data)
  with pytest.raises(errors.DataError, match=r'record 2 of .*texts-00000\.array_record cannot be'):
    latents.load(str(tmp_path), encoded.SHAPE)
  one, two = (tmp_path / f'latents-0000{k}.array_record' for k in (0, 1))
  one.write_bytes(two.read_bytes())
  with pytest.raises(errors.DataError, match=r'record 0 of .* it is record 0 of shard 1'):
    latents.load(str(tmp_path), encoded.SHAPE)


def test_latents_of_another_shape_are_refused_with_the_right_one(cache):
  words = (
    r'\[2, 3, 5\], but the model takes \[8, 8, 4\]; set model\.image_size=2 .*image_channels=5'
  )
  with pytest.raises(errors.DataError, match=words):
    latents.load(str(cache[0]), (8, 8, 4))
