"""Reads encoded latents and caption embeddings from a cache folder, as examples for training.

data/latent_cache.py writes the cache folder.
"""

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gdistill import errors
from gdistill.data import records
from gdistill.data import source

FORMAT = 'gdistill-latents'
COMMAND = 'gdistill encode'
DTYPE = ml_dtypes.bfloat16
# Header of a picture's record, before the latents: crc32, number of the shard, place of the record
# in the shard, label, number of the caption.
HEADER = struct.Struct('<IIIII')
# Header of a caption's record: crc32, number of the shard, place of the record in the shard.
TEXT_HEADER = struct.Struct('<III')
_IN_MEMORY = 2**29  # largest size in bytes of a cache that is read once and kept in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
  """The encoded examples of a split, with `gather` and `fields` as in source.Source.

  `shape` is the shape of one latent, [h, w, c]. If the cache stores only means, an example has 2
  latents: the mean for the picture and for its mirror image. If the cache stores the autoencoder's
  posterior, an example has 4 latents: a mean and a standard deviation for the picture and for its
  mirror image.
  """

  index: dict[str, Any]
  # `read(i)` returns (latents, masked latents, label, number of the caption) of example i.
  read: Callable[[int], tuple[np.ndarray, np.ndarray, int, int]]
  # `text(k)` returns (embedding, token mask) of the caption with number k.
  text: Callable[[int], tuple[np.ndarray, np.ndarray]] | None
  in_memory: bool
  # Never heavy: only the paths of the cache are copied to worker processes, and a cache in memory
  # is read without worker processes.
  heavy = False

  def __len__(self) -> int:
    return self.index['count']

  @property
  def shape(self) -> tuple[int, int, int]:
    return tuple(self.index['shape'])

  @property
  def class_names(self) -> tuple[str, ...]:
    return tuple(self.index['class_names'])

  @property
  def views(self) -> tuple[int, int]:
    """Returns (number of views of an example, number of arrays of a view).

    The 2 views of an example are the picture and its mirror image. A view has 1 array, the mean, or
    2 arrays if the cache stores standard deviations too.
    """
    return 2, 1 + self.index['posterior']

  @property
  def fields(self) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns {name: (shape, dtype)} of the arrays that `gather` returns, for one example."""
    found = {'latents': ((*self.views, *self.shape), DTYPE), 'label': ((), np.int32)}
    if count := self.index.get('masks', 0):
      found['masked'] = masked_shape(count, self.shape), DTYPE
    if text := self.index['text']:
      found['text'] = (text['length'], text['width']), DTYPE
      found['text_mask'] = (text['length'],), np.bool_
    return found

  @property
  def fingerprint(self) -> str:
    return self.index['digest'][:16]

  def gather(self, index: Any) -> dict[str, np.ndarray]:
    """Returns the batch {'latents': [B, 2, 1 or 2, h, w, c] bfloat16, 'label': [B] int32}.

    The batch holds the examples whose numbers are in `index`. If the cache has captions, the batch
    also has 'text' [B, length, width] bfloat16 and 'text_mask' [B, length] bool. If the cache has
    inpainting masks, the batch also has 'masked' [B, 2, masks, h, w, 1 + c] bfloat16, where the
    axis of size 2 has the picture and its mirror image.
    """
    latents, masked, labels, captions = zip(*(self.read(int(i)) for i in index), strict=True)
    out = {'latents': np.stack(latents), 'label': np.array(labels, np.int32)}
    if 'masked' in self.fields:
      out['masked'] = np.stack(masked)
    if self.text is not None:
      texts, masks = zip(*(self.text(c) for c in captions), strict=True)
      out |= {'text': np.stack(texts), 'text_mask': np.stack(masks)}
    return out

  def renumbered(self, numbers: Sequence[int], names: Sequence[str]) -> 'Latents':
    """Returns these latents with class k as number numbers[k], and with the class names `names`.

    The fingerprint changes only if a number changes.
    """
    index = {**self.index, 'class_names': list(names)}
    if list(numbers) == list(range(len(names))):
      return dataclasses.replace(self, index=index)
    digest = source.fingerprint([self.fingerprint, 'classes', *map(str, numbers)])
    read = _Renumbered(self.read, tuple(numbers))
    return dataclasses.replace(self, index={**index, 'digest': digest}, read=read)


def load(folder: str, shape: tuple[int, int, int]) -> Latents:
  """Returns the Latents in the cache folder `folder`; a latent must have the shape `shape`.

  Raises DataError if the cache is incomplete or damaged, or if a latent's shape is not `shape`.
  """
  index = records.read_index(folder, FORMAT, COMMAND, 'latents.cache')
  found = tuple(index['shape'])
  if found != shape:
    raise errors.DataError(
      f'{folder} holds latents of height, width, channels {list(found)}, but the model '
      f'takes {list(shape)}; set model.image_size={found[0]} and model.image_channels={found[2]}, '
      'or set latents.cache to another folder'
    )
  shapes = (2, 1 + index['posterior'], *found), masked_shape(index.get('masks', 0), found)
  read = _Examples(_shards(folder, index['shards']), *shapes)
  text = index['text']
  text = text and _Texts(_shards(folder, index['text_shards']), text['length'], text['width'])
  small = sum(s['bytes'] for s in (*index['shards'], *index['text_shards'])) <= _IN_MEMORY
  if small:
    read = _Kept([read(i) for i in range(index['count'])])
    if text:
      captions = sum(s['count'] for s in index['text_shards'])
      text = _Kept([text(i) for i in range(captions)])
  return Latents(index, read, text or None, in_memory=small)


def labels(folder: str, listed: Sequence[tuple[str, int]]) -> np.ndarray:
  """Returns the labels of all records of shards of pictures, int32 [number of records].

  `listed` has (file name, number of records) of every shard.
  """
  shards = records.Shards(folder, tuple(listed), COMMAND)
  count = sum(n for _, n in listed)
  read = (shards.read(i, lambda data, *_: HEADER.unpack_from(data)[3]) for i in range(count))
  return np.fromiter(read, np.int32, count)


def masked_shape(count: int, shape: tuple[int, int, int]) -> tuple[int, ...]:
  """Returns the shape of an example's masked latents, with `count` masks for each of two views."""
  return 2, count, *shape[:2], shape[2] + 1


def _shards(folder: str, listed: Sequence[dict[str, Any]]) -> records.Shards:
  shards = tuple((s['name'], s['count']) for s in listed)
  return records.Shards(folder, shards, COMMAND)


@dataclasses.dataclass(frozen=True, eq=False)
class _Renumbered:
  """Reads example i of the reader `inner`, with the label k as numbers[k]."""

  inner: Callable[[int], tuple[np.ndarray, np.ndarray, int, int]]
  numbers: tuple[int, ...]

  def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    latents, masked, label, caption = self.inner(i)
    return latents, masked, self.numbers[label], caption


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
  """Reads value i from a list in memory, in place of _Examples or _Texts, which read files."""

  values: list

  def __call__(self, i: int) -> Any:
    return self.values[i]


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
  """Reads example i from the shard file that holds example i.

  The reader is a class, not a closure, because worker processes unpickle the reader.
  """

  shards: records.Shards
  shape: tuple[int, ...]
  masked: tuple[int, ...]

  def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    return self.shards.read(i, self._parse)

  def _parse(self, data: bytes, shard: int, place: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    first, second = int(np.prod(self.shape)), int(np.prod(self.masked))
    label, caption = records.opened(HEADER, data, shard, place, 2 * (first + second))
    values = np.frombuffer(data, DTYPE, offset=HEADER.size)
    return values[:first].reshape(self.shape), values[first:].reshape(self.masked), label, caption


@dataclasses.dataclass(frozen=True, eq=False)
class _Texts:
  """Reads the embedding [length, width] and the token mask [length] of caption i from its shard."""

  shards: records.Shards
  length: int
  width: int

  def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    return self.shards.read(i, self._parse)

  def _parse(self, data: bytes, shard: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    records.opened(TEXT_HEADER, data, shard, place, self.length * (1 + 2 * self.width))
    mask = np.frombuffer(data, np.uint8, self.length, TEXT_HEADER.size).astype(bool)
    hidden = np.frombuffer(data, DTYPE, offset=TEXT_HEADER.size + self.length)
    return hidden.reshape(self.length, self.width), mask
