"""Defines Source, a data set of labelled pictures that are read by index."""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import pictures
from gdistill.recipe import class_names

_THREADS = 8  # number of threads that read examples ahead
_AT_A_TIME = 256  # number of examples that `some` reads ahead


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A data set: `read(i)` returns example i, (pixels [H, W, C] uint8, label).

  Several threads call `read`, and worker processes get a pickled copy of `read`. `fingerprint` is
  a hash of the examples and their order, but not of their path; a run resumes only if the
  fingerprint is unchanged.
  """

  read: Callable[[int], tuple[np.ndarray, int]]
  count: int
  shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  fingerprint: str
  in_memory: bool = False  # whether examples are in memory; then reading ahead has no gain
  heavy: bool = False  # whether `read` holds too many bytes to be copied to worker processes
  otherwise: str = ''  # why an earlier version's record of the pictures is not continued; or ''
  sampled: str = ''  # the fingerprint by samples of bytes, if `fingerprint` is an earlier version's
  leaves_out: type[Exception] = pictures.TooSmall  # examples with this error are not in `batches`

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
    """Returns (pixels, label) of example i; raises DataError for a wrong shape, dtype or label."""
    pixels, label = self.read(int(i))
    if pixels.dtype != np.uint8 or pixels.shape != self.shape:
      raise errors.DataError(
        f'example {i} is {pixels.dtype}{list(pixels.shape)}, not uint8{list(self.shape)} as the '
        'examples of this data set must be; prepare the data set again'
      )
    if not 0 <= label < len(self.class_names):
      raise errors.DataError(
        f'example {i} has label {label}; the {len(self.class_names)} classes of this data set are '
        f'0 to {len(self.class_names) - 1}; prepare the data set again'
      )
    return pixels, int(label)

  def before(self) -> 'Source':
    """Returns these examples with the fingerprint that earlier versions of gdistill gave them.

    Earlier versions recognised a picture by its name and the length of its file. A source without
    picture files is returned as it is, because its fingerprint did not change.
    """
    if not can_be_before(self.read):
      return self
    read, printed = self.read.before()
    return dataclasses.replace(self, read=read, fingerprint=printed, sampled=self.fingerprint)

  @property
  def changed(self) -> str:
    """Why an earlier version's fingerprint of the examples differs, for error lines; or ''."""
    return '; '.join(filter(None, (self.otherwise, getattr(self.read, 'changed', ''))))

  @property
  def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
    """Returns {name: (shape, dtype)} of the arrays that `gather` returns, for one example."""
    return {'pixels': (self.shape, np.uint8), 'label': ((), np.int32)}

  def gather(self, index: Iterable[int]) -> dict[str, np.ndarray]:
    """Returns {'pixels': [B, H, W, C] uint8, 'label': [B] int32} of the examples in `index`."""
    # One call for all: one for each example costs 4 % of a training step on the data set 'digits'.
    if isinstance(self.read, _Arrays):
      index = np.asarray(index)
      return {'pixels': self.read.pixels[index], 'label': self.read.labels[index]}
    pixels, labels = zip(*(self[i] for i in index), strict=True)
    return {'pixels': np.stack(pixels), 'label': np.array(labels, np.int32)}

  def batches(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields (index [b], gather(index)) for consecutive batches of all examples, read ahead.

    Examples whose reading raises the error `leaves_out` are left out, so batches may be smaller.
    """
    if self.in_memory:
      for first in range(0, self.count, size):
        index = np.arange(first, min(first + size, self.count))
        yield index, self.gather(index)
      return
    for index, found in ahead(self._readable, self.count, size):
      if kept := [(i, *one) for i, one in zip(index, found, strict=True) if one is not None]:
        numbers, pixels, labels = zip(*kept, strict=True)
        yield np.array(numbers), {'pixels': np.stack(pixels), 'label': np.array(labels, np.int32)}

  def _readable(self, i: int) -> tuple[np.ndarray, int] | None:
    try:
      return self[i]
    except self.leaves_out:
      return None

  def some(self, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (pixels, labels) of at most `most` examples, chosen at random with a fixed seed.

    Of the chosen examples, those that `batches` leaves out are missing.
    """
    found = [batch for _, batch in self.subset(self.indices(most)).batches(_AT_A_TIME)]
    if not found:
      raise errors.DataError('all examples are too small or unreadable; give larger pictures')
    return tuple(np.concatenate([f[name] for f in found]) for name in ('pixels', 'label'))

  def indices(self, most: int) -> np.ndarray:
    """Returns the sorted indices of at most `most` examples, chosen at random with a fixed seed."""
    if self.count <= most:
      return np.arange(self.count)
    return np.sort(np.random.default_rng(0).permutation(self.count)[:most])

  def subset(self, index: np.ndarray) -> 'Source':
    """Returns the source of the examples in `index`, in the order of `index`.

    Returns this source itself if `index` lists all examples in order.
    """
    index = np.asarray(index, np.int64)
    if np.array_equal(index, np.arange(self.count)):
      return self
    inside = isinstance(self.read, _Arrays)
    return dataclasses.replace(
      self,
      read=self.read.subset(index) if inside else _Subset(self.read, index),
      count=len(index),
      fingerprint=_of_subset(self.fingerprint, index),
      sampled=self.sampled and _of_subset(self.sampled, index),
    )

  def renumbered(self, numbers: Sequence[int], names: Sequence[str]) -> 'Source':
    """Returns this source with class k as number numbers[k], and with the class names `names`.

    The fingerprint changes only if a number changes.
    """
    if list(numbers) == list(range(len(names))):
      return dataclasses.replace(self, class_names=tuple(names))
    to = np.asarray(numbers, np.int32)
    inside = isinstance(self.read, _Arrays)
    return dataclasses.replace(
      self,
      read=_Arrays(self.read.pixels, to[self.read.labels])
      if inside
      else _Renumbered(self.read, to),
      class_names=tuple(names),
      fingerprint=fingerprint([self.fingerprint, 'classes', *map(str, numbers)]),
    )


class _Around:
  """A reader that passes on what the reader `inner` says about its examples."""

  @property
  def changed(self) -> str:
    return getattr(self.inner, 'changed', '')

  @property
  def notes(self) -> tuple[str, ...]:
    return self.inner.notes


@dataclasses.dataclass(frozen=True, eq=False)
class _Renumbered(_Around):
  """Reads example i of the reader `inner`, with the label k as numbers[k]; a class, as _Subset."""

  inner: Callable[[int], tuple[np.ndarray, int]]
  numbers: np.ndarray

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    pixels, label = self.inner(i)
    return pixels, int(self.numbers[label])


@dataclasses.dataclass(frozen=True, eq=False)
class _Subset(_Around):
  """Reads example i of a subset: example index[i] of the reader `inner`.

  The reader is a class, not a closure, because worker processes get the reader by pickle, and
  closures cannot be pickled.
  """

  inner: Callable[[int], tuple[np.ndarray, int]]
  index: np.ndarray

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    return self.inner(int(self.index[i]))

  def before(self) -> tuple['_Subset', str]:
    inner, printed = self.inner.before()
    return _Subset(inner, self.index), _of_subset(printed, self.index)

  def file_bytes(self, i: int) -> bytes | None:
    return self.inner.file_bytes(int(self.index[i]))

  def name(self, i: int) -> str:
    return self.inner.name(int(self.index[i]))

  @property
  def caption(self) -> Callable[[int], str]:
    """Returns a function from an example's index to its caption.

    Raises AttributeError if the reader `inner` has no method `caption`.
    """
    inner = self.inner.caption
    return lambda i: inner(int(self.index[i]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Arrays:
  """Reads example i from arrays of pixels and labels in memory."""

  pixels: np.ndarray
  labels: np.ndarray

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    return self.pixels[i], int(self.labels[i])

  def subset(self, index: np.ndarray) -> '_Arrays':
    return _Arrays(self.pixels[index], self.labels[index])


def ahead(read: Callable[[int], Any], count: int, size: int) -> Iterator[tuple[np.ndarray, list]]:
  """Yields (index [b], [read(i) for i in index]) in batches of at most `size`, for all i < `count`.

  Threads read the next batch while the caller uses the current batch.
  """
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    waiting = None
    for first in [*range(0, count, size), None]:
      coming = None
      if first is not None:
        index = np.arange(first, min(first + size, count))
        coming = index, [pool.submit(read, int(i)) for i in index]
      if waiting is not None:
        yield waiting[0], [f.result() for f in waiting[1]]
      waiting = coming


def in_memory(pixels: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Source:
  """Returns a Source of pixels [n, H, W, C] uint8 and labels [n] that are in memory.

  Raises DataError if the pixels are not uint8 or if a label is not the number of a class.
  """
  parts = [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for a in (pixels, labels)]
  found = Source(
    _Arrays(pixels, np.asarray(labels, np.int32)), len(labels), pixels.shape[1:], class_names,
    fingerprint(parts), in_memory=True,
  )  # fmt: skip
  odd = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
  for i in (0, *odd[:1]) if len(labels) else ():
    found[i]
  return found


def innermost(found: Source) -> Any:
  """Returns the reader of the data set that `found` is, or is a subset of."""
  read = found.read
  while isinstance(read, _Subset):
    read = read.inner
  return read


def labels(found: Source) -> np.ndarray:
  """Returns the labels of all examples of the data set `found`, int32 [count].

  Pictures are decoded only if the reader `found.read` has neither an array `labels` nor a method
  `label(i)`.
  """
  read, index = found.read, np.arange(len(found))
  while isinstance(read, _Subset):
    read, index = read.inner, read.index[index]
  if hasattr(read, 'labels'):
    return np.asarray(read.labels, np.int32)[index]
  if hasattr(read, 'label'):
    return np.array([read.label(int(i)) for i in index], np.int32)
  return np.array([found[i][1] for i in range(len(found))], np.int32)


def fingerprint(parts: Iterable[str]) -> str:
  """Returns sixteen hex digits of a sha256 over the strings `parts`."""
  found = Fingerprint()
  for part in parts:
    found.add(part)
  return str(found)


class Fingerprint:
  """The fingerprint of strings that are added one by one; `str(...)` returns sixteen hex digits."""

  def __init__(self):
    self._hash = hashlib.sha256()

  def add(self, part: str) -> None:
    data = part.encode('utf-8', 'surrogateescape')
    self._hash.update(len(data).to_bytes(8, 'little') + data)

  def __str__(self) -> str:
    return self._hash.hexdigest()[:16]


def can_be_before(read: Any) -> bool:
  """Returns whether a reader has picture files, which earlier versions recognised by their length.

  Such a reader has the methods before(), which returns (reader, fingerprint) as in earlier
  versions, file_bytes(i), which returns the bytes of a picture file or None, and name(i).
  """
  while isinstance(read, _Subset):
    read = read.inner
  return hasattr(read, 'before')


def _of_subset(printed: str, index: np.ndarray) -> str:
  """Returns the fingerprint of the examples in `index`, of a source with fingerprint `printed`."""
  return fingerprint([printed, hashlib.sha256(index.tobytes()).hexdigest()])


def held_out(source: Source, share: float) -> tuple[Source, Source]:
  """Splits a Source into (training, held out); a fixed `share` of every class is held out.

  Raises DataError if a class would have no examples left for training.
  """
  known, kept, held = labels(source), [], []
  for c in range(len(source.class_names)):
    # The random seed is the number of the class, not the run's seed, so that every run holds out
    # the same examples.
    index = np.random.default_rng(c).permutation(np.flatnonzero(known == c))
    cut = round(share * len(index))
    if share and cut == len(index):
      name, count = source.class_names[c], len(index)
      raise errors.DataError(
        f'data.held_out={share} holds out all {count:,} examples of the class {name!r}, so '
        'training would miss this class; lower data.held_out, or add pictures of this class'
        if count
        else f'the class {name!r} has no examples, so training would miss this class; '
        'add pictures of this class, or take its name out of the data set'
      )
    held.append(index[:cut])
    kept.append(index[cut:])
  return tuple(source.subset(np.sort(np.concatenate(part))) for part in (kept, held))


def same_classes(train: Source, held: Source, where: str, splits: tuple[str, str]) -> None:
  """Raises DataError unless `train` and `held` have the same class names in the same order.

  The error line begins with `where`, names the two `splits` and says what was passed over.
  """
  if held.class_names != train.class_names:
    said = class_names.difference(train.class_names, held.class_names, tuple(map(repr, splits)))
    if not said:
      pairs = zip(train.class_names, held.class_names, strict=True)
      odd = [' and '.join(class_names.told_apart(pair)) for pair in pairs if pair[0] != pair[1]]
      more = f' ({len(odd) - 1:,} more names differ so)' if odd[1:] else ''
      said = f'{odd[0]} are two ways to write one name{more}'
    raise errors.DataError(
      f'{where}: {splits[0]!r} and {splits[1]!r} differ in their classes: {said}; '
      'give the two splits the same class names, in the same order'
      + ''.join(f' ({note})' for note in notes(train, held))
    )


def notes(*sources: Source) -> tuple[str, ...]:
  """Returns the lines in which the readers of the sources say what they passed over.

  A line that several sources share is returned once. A further line names classes that look the
  same, because they are easily taken for one class.
  """
  lines = [line for s in sources for line in getattr(s.read, 'notes', ())]
  for alike in (class_names.look_alikes(s.class_names) for s in sources):
    if alike:
      lines.append(
        f'{len(alike):,} classes have names that look the same and differ in their Unicode form: '
        f'{", ".join(alike[:2])}; if they are one class, put their pictures into one folder'
      )
  return tuple(dict.fromkeys(lines))


def check_classes(train: Source, where: str) -> None:
  """Raises DataError if a class has no training examples; the error line begins with `where`.

  Sources whose labels are not at hand are not checked, because every example would be read.
  """
  if not hasattr(innermost(train), 'labels'):
    return
  counts = np.bincount(labels(train), minlength=len(train.class_names))
  empty = [train.class_names[c] for c in np.flatnonzero(counts == 0)]
  if empty:
    raise errors.DataError(
      f'{where} has no training examples of {len(empty):,} class{"es" if empty[1:] else ""}, such '
      f'as {empty[0]!r}; add pictures, or take such names out of the data set'
    )
