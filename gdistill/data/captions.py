"""Captioned pictures: a folder with captions, WebDataset shards, or TFDS; and classes in words."""

import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from gdistill import errors
from gdistill.data import images
from gdistill.data import pictures
from gdistill.data import source
from gdistill.data import tfds
from gdistill.data import webdataset
from gdistill.recipe import settings as recipes

Kind = Literal['folder', 'webdataset', 'tfds']
_TABLES = ('metadata.jsonl', 'metadata.csv', 'captions.csv')
_FEATURES = ('captions', 'caption', 'text')


@dataclasses.dataclass(frozen=True, eq=False)
class Captioned:
  """`read(i)` is example i: (pixels [H, W, 3] uint8, caption).

  `read` also has `caption(i)`, which decodes no picture. It is called by several threads, and
  pickled where there are workers. `fingerprint` names the examples and their order; `notes` are
  lines that the user should see.
  """

  read: Callable[[int], tuple[np.ndarray, str]]
  count: int
  shape: tuple[int, int, int]
  fingerprint: str
  notes: tuple[str, ...] = ()

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, i: int) -> tuple[np.ndarray, str]:
    return self.read(int(i))

  def caption(self, i: int) -> str:
    return self.read.caption(int(i))

  def subset(self, index: np.ndarray) -> 'Captioned':
    """The examples of `index`, in that order; of all in order, this."""
    index = np.asarray(index, np.int64)
    if np.array_equal(index, np.arange(self.count)):
      return self
    parts = [self.fingerprint, hashlib.sha256(index.tobytes()).hexdigest()]
    return dataclasses.replace(
      self, read=_Subset(self.read, index), count=len(index), fingerprint=source.fingerprint(parts)
    )


def load(path: str, kind: Kind, size: int, split: str = '', data_dir: str = '') -> Captioned:
  """Captioned pictures, cropped and resized as pictures.square does to `size` a side.

  folder      <name>.png with <name>.txt beside it, at any depth, or a table of file_name and text
              at the top: metadata.jsonl, metadata.csv or captions.csv.
  webdataset  a folder or a pattern of shards; see `webdataset.index`.
  tfds        `path` is the set's name; its feature 'captions', 'caption' or 'text', the first if
              there are several. `data_dir` is where it was prepared. With its version,
              'coco_captions/2014:1.1.0', what was prepared needs no TensorFlow.

  `split` is a subfolder, or a split of TFDS. DataError says what is missing or damaged.
  """
  if kind == 'tfds':
    return _tfds(path, split or 'train', data_dir, size)
  if split and not os.path.isdir(os.path.join(path, split)):
    raise errors.DataError(f'{path} has no subfolder {split!r}; name the split that is there')
  path = os.path.join(path, split) if split else path
  if kind == 'webdataset':
    index = webdataset.index(path)
    return Captioned(
      webdataset.Read(index, size), len(index.rows), (size, size, 3), index.fingerprint,
      notes=index.notes,
    )  # fmt: skip
  return _folder(path, size)


def load_pixels(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """(training, held out) as sources, whose `read.caption(i)` is the caption of example i.

  Where the pictures have no classes, all are of one.
  """
  kind = {'captions': 'folder', 'tfds_captions': 'tfds'}.get(settings.name, settings.name)
  path = settings.dataset or settings.path if kind == 'tfds' else settings.path
  data_dir = settings.path if kind == 'tfds' else ''

  def split(name):
    return load(path, kind, shape[0], split=name, data_dir=data_dir)

  if settings.held_out:
    whole = split(settings.split if kind == 'tfds' or _has(path, settings.split) else '')
    pair = held_out(whole, settings.held_out)
  else:
    pair = split(settings.split), split(settings.held_out_split)
  return tuple(_as_source(found) for found in pair)


def _has(path: str, split: str) -> bool:
  return bool(split) and os.path.isdir(os.path.join(path, split))


def _as_source(data: Captioned) -> source.Source:
  read = _Labelled(data.read, data.notes)
  return source.Source(read, len(data), data.shape, ('pictures',), data.fingerprint)


@dataclasses.dataclass(frozen=True, eq=False)
class _Labelled:
  """(pixels, label) of what reads (pixels, caption)."""

  inner: Any
  notes: tuple[str, ...]

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    return self.inner(i)[0], 0

  def caption(self, i: int) -> str:
    return self.inner.caption(i)


def of_names(class_names: Sequence[str], template: str) -> list[str]:
  """The template with each class's name."""
  if template.count('{}') != 1:
    raise errors.ConfigError(
      f'{template=} must have one {{}} where the name of the class goes, as in "a photo of a {{}}"'
    )
  return [template.replace('{}', in_words(name)) for name in class_names]


def in_words(class_name: str) -> str:
  """'great_white_shark, white shark' -> 'great white shark'."""
  return ' '.join(class_name.partition(',')[0].replace('_', ' ').split())


def held_out(data: Captioned, share: float) -> tuple[Captioned, Captioned]:
  """(training, held out), by the draw with which source.held_out divides a class."""
  index = np.random.default_rng(0).permutation(data.count)
  cut = round(share * data.count)
  return tuple(data.subset(np.sort(part)) for part in (index[cut:], index[:cut]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Subset:
  inner: Any
  index: np.ndarray

  def __call__(self, i: int) -> tuple[np.ndarray, str]:
    return self.inner(int(self.index[i]))

  def caption(self, i: int) -> str:
    return self.inner.caption(int(self.index[i]))


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
  """Pictures that are files, at these paths."""

  path: str
  names: list[str]  # below path
  captions: list[str]
  size: int

  def __call__(self, i: int) -> tuple[np.ndarray, str]:
    try:
      with open(self.name(i), 'rb') as f:
        data = f.read()
    except OSError as e:
      raise errors.DataError(
        f'{self.name(i)} cannot be read: {e.strerror}; mend or remove it'
      ) from e
    return pictures.square(pictures.decode(data, self.name(i)), self.size), self.captions[i]

  def caption(self, i: int) -> str:
    return self.captions[i]

  def name(self, i: int) -> str:
    return os.path.join(self.path, self.names[i])


def _folder(path: str, size: int) -> Captioned:
  """A table names pictures; it is looked up among those that are there, and is no path."""
  names = [os.path.relpath(n, path) for n in images.load(path, 'data.path', size).names]
  if not names:
    raise errors.DataError(f'data.path={path} is no folder of pictures; name one')
  table = next((t for t in _TABLES if os.path.isfile(os.path.join(path, t))), '')
  if table:
    known = _table(os.path.join(path, table))
  else:
    known = {n: _beside(os.path.splitext(os.path.join(path, n))[0] + '.txt') for n in names}
  without = [n for n in names if not known.get(n)]
  away = sorted(known.keys() - set(names))
  kept = [n for n in names if known.get(n)]
  if not kept:
    raise errors.DataError(
      f'{path}: none of {len(names):,} pictures has a caption; put <name>.txt beside <name>.png, '
      f'or a {" or ".join(_TABLES)} with file_name and text at the top'
    )
  notes = ()
  if without or away:
    notes = (
      f'{path}: {len(without):,} pictures without a caption and {len(away):,} captions without a '
      f'picture are left out, the first of them {(without or away)[0]!r}',
    )
  captions = [known[n] for n in kept]
  parts = [
    f'{n} {os.path.getsize(os.path.join(path, n))} {c}' for n, c in zip(kept, captions, strict=True)
  ]
  return Captioned(
    _File(path, kept, captions, size), len(kept), (size, size, 3), source.fingerprint(parts),
    notes=notes,
  )  # fmt: skip


def _beside(file: str) -> str:
  try:
    with open(file, encoding='utf-8-sig') as f:
      return webdataset.first_line(f.read())
  except FileNotFoundError:
    return ''
  except (OSError, UnicodeDecodeError) as e:
    raise errors.DataError(f'{file} cannot be read ({errors.brief(e)}); save it as UTF-8') from e


def _table(file: str) -> dict[str, str]:
  """{file_name: text}; DataError names the row that has not both, or a name that comes twice."""
  found = {}
  try:
    with open(file, encoding='utf-8-sig', newline='') as f:
      if file.endswith('.csv'):
        rows = enumerate(csv.DictReader(f), 2)
      else:
        rows = ((n, json.loads(line)) for n, line in enumerate(f, 1) if line.strip())
      for number, row in rows:
        name, text = (row.get(c) if isinstance(row, dict) else None for c in ('file_name', 'text'))
        if not isinstance(name, str) or not isinstance(text, str):
          raise ValueError(f'row {number} has no file_name and text')
        name = os.path.normpath(name)
        if name in found:
          raise ValueError(f'row {number} names {name!r} again')
        found[name] = webdataset.first_line(text)
  except (OSError, ValueError, csv.Error, RecursionError) as e:
    raise errors.DataError(f'{file} cannot be read ({errors.brief(e)}); mend it') from e
  return found


def _tfds(name: str, split: str, data_dir: str, size: int) -> Captioned:
  import tensorflow_datasets  # heavy, and only these lines need it

  shape = (size, size, 3)
  try:
    data = tensorflow_datasets.data_source(
      name, split=split, data_dir=data_dir or None, download=False
    )
    info = data.dataset_info
    feature = next((f for f in _FEATURES if f in info.features), None)
  except Exception:
    feature = None  # tfds.split says what is wrong
  if feature is None:
    tfds.split(name, split, data_dir, shape)
    raise errors.DataError(
      f"{name} has classes and no captions; take data.name='tfds', and latents.template makes them "
      'of the names of the classes'
    )
  if 'image' not in info.features:
    raise errors.DataError(
      f"{name} has the features {', '.join(info.features)}; it needs 'image' and {feature!r}"
    )
  data.decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
  parts = [str(info.full_name), split, str(len(data)), feature]
  read = _Tfds(data, f'{info.full_name} {split}', feature, size)
  return Captioned(read, len(data), shape, source.fingerprint(parts))


@dataclasses.dataclass(frozen=True, eq=False)
class _Tfds:
  data: Any
  where: str
  feature: str
  size: int

  def __call__(self, i: int) -> tuple[np.ndarray, str]:
    example = self._example(i)
    image = example['image']
    if isinstance(image, bytes):
      pixels = pictures.decode(image, self.name(i))
    else:
      pixels = pictures.convert(np.asarray(image), self.name(i), 3)
    return pictures.square(pixels, self.size), self._caption(i, example)

  def caption(self, i: int) -> str:
    return self._caption(i, self._example(i))

  def name(self, i: int) -> str:
    return f'example {i} of {self.where}'

  def _caption(self, i: int, example: dict[str, Any]) -> str:
    found = _first_text(example[self.feature])
    if not found:
      raise errors.DataError(f'{self.name(i)} has no text in {self.feature!r}; leave the set out')
    return found

  def _example(self, i: int) -> dict[str, Any]:
    try:
      return self.data[i]
    except Exception as e:  # array_record's RuntimeError, protobuf's DecodeError, ...
      reason = errors.brief(e)
      raise errors.DataError(
        f'{self.name(i)} cannot be read: {reason}; prepare the set again'
      ) from e


def _first_text(value: Any) -> str:
  """Of a text, of several, or of what has them as 'text'."""
  if isinstance(value, dict):
    return _first_text(value.get('text', ''))
  if isinstance(value, list | tuple | np.ndarray):
    return next(filter(None, map(_first_text, value)), '')
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  return webdataset.first_line(value) if isinstance(value, str) else ''
