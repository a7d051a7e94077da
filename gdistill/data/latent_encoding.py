"""Makes the records of a latent cache: encodes pictures as latents and captions as embeddings.

The autoencoder and the text encoder are passed in as functions, so this module imports no network.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gdistill import errors
from gdistill.data import latents as stored
from gdistill.data import pictures
from gdistill.data import records
from gdistill.data import source


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """An autoencoder: `encode(pixels [B, H, W, 3] uint8)` returns the mean and deviation of latents.

  The mean and the standard deviation are each [B, h, w, c]. If `posterior` is False, the standard
  deviation is zero and is not stored. `digest` is a hash of the autoencoder's parameters and of the
  scale of its latents. `masks` is the number of inpainting masks that are stored with each picture
  and with its mirror image; 0 means no inpainting. `masked(pixels, numbers [B])` returns
  [B, h, w, 1 + c]: for picture i a random mask, drawn with numbers[i] as seed, and the latent of
  the picture without the pixels under the mask.
  """

  encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
  shape: tuple[int, int, int]
  posterior: bool
  digest: str
  masks: int = 0
  masked: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
  """A text encoder: `encode(captions)` returns (embeddings [n, length, width], mask [n, length]).

  The mask [n, length] is true at the caption's tokens and false at the padding.
  """

  encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
  length: int
  width: int
  digest: str


class Encoding:
  """Encodes the examples of a split, and their distinct captions, as records of a latent cache.

  `captions` has one caption for every example, or is empty without a text encoder. A picture that
  cannot be read raises DataError, or is left out if `skip_corrupt` is True; a picture that is too
  small is always left out. Batches are padded to
  `batch_size`, so that each encoder is compiled for one shape only.
  """

  def __init__(
    self,
    examples: source.Source,
    encoder: Encoder,
    texts: Texts | None,
    captions: Sequence[str],
    batch_size: int,
    skip_corrupt: bool,
  ):
    self._examples, self._encoder, self._texts = examples, encoder, texts
    self._batch_size, self._skip_corrupt = batch_size, skip_corrupt
    self.distinct = list(dict.fromkeys(captions)) if texts else []
    numbers = {caption: i for i, caption in enumerate(self.distinct)}
    self._numbers = np.array([numbers[c] for c in captions] if texts else [0] * len(examples))

  def latents(self, shard: int, first: int, last: int, poll: Callable[[], None]) -> Iterator[bytes]:
    """Yields, in order, the records of the readable pictures number `first` to `last` - 1.

    A record holds bfloat16 numbers: first the latents [2, 1 or 2, h, w, c] of a picture and its
    mirror image (mean, and standard deviation if stored), then the masks and masked latents
    [2, masks, h, w, 1 + c] of the picture and its mirror image. `poll()` is called between batches
    and may raise an exception to stop the job.
    """
    written = 0
    for index, pixels, labels in self._pictures(first, last):
      poll()
      views = [self._encode(a) for a in (pixels, pixels[:, :, ::-1])]
      latents = np.stack(views, axis=1).astype(stored.DTYPE)
      _check_finite(latents, index)
      masked = self._masked(index, pixels)
      for i, one, more, label in zip(index, latents, masked, labels, strict=True):
        head = (shard, written, label, int(self._numbers[i]))
        body = np.concatenate([one.reshape(-1), more.reshape(-1)])
        yield records.sealed(stored.HEADER, head, body)
        written += 1

  def embeddings(
    self, shard: int, first: int, last: int, poll: Callable[[], None]
  ) -> Iterator[bytes]:
    """Yields, in order, the records of the distinct captions number `first` to `last` - 1.

    A record holds the token mask [length] as bytes, then the embedding [length, width] in bfloat16.
    `poll()` is called between batches and may raise an exception to stop the job.
    """
    for start in range(first, last, self._batch_size):
      poll()
      captions = self.distinct[start : min(start + self._batch_size, last)]
      padded = captions + [''] * (self._batch_size - len(captions))
      hidden, mask = (np.asarray(a)[: len(captions)] for a in self._texts.encode(padded))
      hidden = hidden.astype(stored.DTYPE)
      if not np.isfinite(hidden.astype(np.float32)).all():
        raise errors.DataError(
          f'the embeddings of captions {start} to {start + len(captions) - 1} are not finite: the '
          'weights that latents.text names may be damaged; download the text encoder again'
        )
      for i, (one, used) in enumerate(zip(hidden, mask, strict=True)):
        body = np.concatenate([used.astype(np.uint8), one.reshape(-1).view(np.uint8)])
        yield records.sealed(stored.TEXT_HEADER, (shard, start - first + i), body)

  def _pictures(self, first: int, last: int) -> Iterator[tuple[tuple, np.ndarray, tuple]]:
    """Yields batches (numbers of the pictures, pixels [b, H, W, 3], labels) of readable pictures.

    The pictures are number `first` to `last` - 1. Threads read the next batch while the caller
    works on the current batch.
    """

    def read(i):
      try:
        return first + i, *self._examples[first + i]
      except errors.DataError as e:
        if self._skip_corrupt or isinstance(e, pictures.TooSmall):
          return None
        raise errors.DataError(
          f'{e}; or set latents.skip_corrupt=True to leave unreadable pictures out; finished '
          'shards are kept'
        ) from e

    for _, found in source.ahead(read, last - first, self._batch_size):
      if readable := [f for f in found if f is not None]:
        index, pixels, labels = zip(*readable, strict=True)
        yield index, np.stack(pixels), labels

  def _encode(self, pixels: np.ndarray) -> np.ndarray:
    """Returns latents [B, 1 or 2, h, w, c]: mean, and standard deviation if that is stored."""
    full = np.resize(pixels, (self._batch_size, *pixels.shape[1:]))
    mean, std = self._encoder.encode(full)
    parts = (mean, std) if self._encoder.posterior else (mean,)
    return np.stack([np.asarray(a) for a in parts], axis=1)[: len(pixels)]

  def _masked(self, index: tuple, pixels: np.ndarray) -> np.ndarray:
    """Returns masks and masked latents [B, 2, masks, h, w, 1 + c] of pictures and mirror images."""
    count, (h, w, c) = self._encoder.masks, self._encoder.shape
    out = np.zeros((len(pixels), 2, count, h, w, 1 + c), stored.DTYPE)
    if not count:
      return out
    size = self._batch_size
    for flip, view in enumerate((pixels, pixels[:, :, ::-1])):
      full = np.resize(view, (size, *view.shape[1:]))
      for k in range(count):
        numbers = np.resize((np.array(index) * 2 + flip) * count + k, size).astype(np.uint32)
        out[:, flip, k] = np.asarray(self._encoder.masked(full, numbers))[: len(pixels)]
    _check_finite(out, index)
    return out


def _check_finite(latents: np.ndarray, index: tuple) -> None:
  if not np.isfinite(latents.astype(np.float32)).all():
    raise errors.DataError(
      f'the latents of examples {index[0]} to {index[-1]} are not finite: the '
      'weights that latents.autoencoder names may be damaged; download the autoencoder again'
    )
