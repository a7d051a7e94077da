"""One small set of pictures and captions, encoded by functions whose results are known."""

import os

import ml_dtypes
import numpy as np

from gdistill import errors
from gdistill.data import latent_cache
from gdistill.data import latent_encoding
from gdistill.data import source

COUNT, SHAPE = 11, (2, 3, 5)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (COUNT, 4, 6, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3
CAPTIONS = [f'picture {i % 4}' for i in range(COUNT)]  # four distinct captions
MATRIX = RNG.normal(size=(4 * 6 * 3, 2 * 3 * 5)).astype(np.float32)


def posterior(pixels):
  """Returns a mean and a deviation that depend on every pixel and are inexact in bfloat16."""
  mean = (pixels.reshape(len(pixels), -1) / np.float32(255) @ MATRIX).reshape(-1, *SHAPE)
  return mean, np.exp(mean / 9)


def embeddings(captions):
  """Returns embeddings seeded by the caption; its last character + 1 tokens count in the mask."""
  rows = [np.random.default_rng(list(c.encode())).normal(size=(5, 7)) for c in captions]
  counts = [int(c[-1]) + 1 if c else 1 for c in captions]
  return np.stack(rows).astype(np.float32), np.arange(5) < np.array(counts)[:, None]


def pictures(pixels=PIXELS, labels=LABELS):
  return source.in_memory(pixels, labels, ('ape', 'bee', 'cat'))


def with_damage(at):
  """Returns the pictures as a source in which the indices `at` cannot be read."""

  def read(i):
    if i in at:
      raise errors.DataError(f'{i}.png is truncated; fix or remove this picture')
    return PIXELS[i], int(LABELS[i])

  read.labels = LABELS
  return source.Source(read, COUNT, PIXELS.shape[1:], ('ape', 'bee', 'cat'), 'some')


ENCODER = latent_encoding.Encoder(posterior, SHAPE, True, 'encoder-1')
TEXTS = latent_encoding.Texts(embeddings, 5, 7, 'texts-1')


def job(out, encoder=ENCODER, texts=TEXTS, captions=None, examples=None, **settings):
  settings = latent_cache.Settings(str(out), **{'batch_size': 3, 'shard_size': 4, **settings})
  given = captions if captions is not None else (CAPTIONS if texts else ())
  return latent_cache.Job(settings, examples or pictures(), encoder, texts, given)


def look():
  pass


def made(out, look=look, **given):
  one = job(out, **given)
  one.check()
  _, count = one.work(look, lambda done: None)
  return one.finish(), count


def bf16(x):
  return np.asarray(x).astype(ml_dtypes.bfloat16)


def same(found, expected):
  """Asserts equality, up to one unit in the last place of bfloat16 in 2 % of the values."""
  assert found.dtype == expected.dtype and found.shape == expected.shape
  a, b = (x.astype(np.float32) for x in (found, expected))
  odd = a != b
  assert odd.mean() < 0.02
  np.testing.assert_allclose(a, b, rtol=2**-7)


def aged(out):
  """Dates all shards back to 1970 and returns their names."""
  for file in out.glob('*.array_record'):
    os.utime(file, (1, 1))
  return {f.name for f in out.glob('*.array_record')}


def made_since(out):
  """Returns the names of the shards that were written after `aged`."""
  return {f.name for f in out.glob('*.array_record') if f.stat().st_mtime > 1}
