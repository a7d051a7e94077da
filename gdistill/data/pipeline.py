"""Batches as a pure function of (seed, step): there is no iterator to lose."""

import functools

import numpy as np

from gdistill import errors
from gdistill.data import digits
from gdistill.data import source

# name -> (shape of an image, number of classes, load(held_out) -> (training, held out))
SOURCES = {'digits': (digits.SHAPE, len(digits.CLASS_NAMES), digits.load)}


def batch(data: source.Source, seed: tuple[int, ...], step: int, size: int) -> dict:
  """The batch of a step: 'pixels', 'label', and 'id', each example's place in the batch.

  Examples are dealt from one permutation after another: place p of the endless deal is entry
  p mod n of permutation p div n, so every example is seen equally often.
  """
  n = len(data)
  if n < size:
    raise errors.DataError(f'{n} training examples are fewer than one batch of {size}')
  place = np.arange(step * size, (step + 1) * size)
  index = np.empty(size, np.int64)
  for epoch in range(place[0] // n, place[-1] // n + 1):
    here = place // n == epoch
    index[here] = _permutation(n, seed, epoch)[place[here] % n]
  return {**data.gather(index), 'id': np.arange(size, dtype=np.int32)}


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: tuple[int, ...], epoch: int) -> np.ndarray:
  return np.random.default_rng((*seed, epoch)).permutation(n)
