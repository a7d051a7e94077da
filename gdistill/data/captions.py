"""Reads captioned pictures from a folder, WebDataset shards or TFDS; lists a source's captions."""

import dataclasses
import os
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from gdistill import errors
from gdistill.data import caption_files
from gdistill.data import earlier
from gdistill.data import images
from gdistill.data import passed
from gdistill.data import pictures
from gdistill.data import source
from gdistill.data import tfds
from gdistill.data import webdataset
from gdistill.recipe import settings as recipes

Kind = Literal['folder', 'webdataset', 'tfds']
CLASS_NAMES = ('pictures',)  # the one class of all captioned pictures, which have no labels
_FEATURES = ('captions', 'caption', 'text')


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns (training, held out), the two sources of captioned pictures of the recipe's `data`."""
  kind = {'captions': 'folder', 'tfds_captions': 'tfds'}.get(settings.name, settings.name)
  path = settings.dataset or settings.path if kind == 'tfds' else settings.path
  data_dir = settings.path if kind == 'tfds' else ''
  if settings.held_out:
    name = settings.split if kind == 'tfds' or _has(path, settings.split) else ''
    return source.held_out(split(path, kind, shape[0], name, data_dir), settings.held_out)
  splits = settings.split, settings.held_out_split
  return tuple(split(path, kind, shape[0], name, data_dir) for name in splits)


def _has(path: str, split: str) -> bool:
  return bool(split) and os.path.isdir(os.path.join(path, split))


def split(path: str, kind: Kind, size: int, name: str = '', data_dir: str = '') -> source.Source:
  """Returns a source of captioned pictures, cropped and resized to `size` pixels a side.

  `kind` says how the pictures and captions are stored at `path`:

  folder      A folder of pictures <name>.png (at any depth), each with its caption in <name>.txt;
              or a folder of pictures and a table metadata.jsonl, metadata.csv or captions.csv,
              whose column file_name has the picture's path and whose column text the caption.
  webdataset  A folder of WebDataset shards, or a pattern that `webdataset.index` describes.
  tfds        The name of a TensorFlow data set with the feature 'captions', 'caption' or 'text'.
              If an example has several captions, the first caption is used. `data_dir` is the
              folder where TFDS prepared the data set. If `path` includes the version, such as
              'coco_captions/2014:1.1.0', TensorFlow need not be installed.

  `name` is a subfolder of `path`, or for TFDS the name of the split. The source's `read.caption(i)`
  returns the caption of example i without decoding the picture of example i. The source's
  `read.notes` holds messages for the user about examples that were left out and about captions of
  several lines. Captions of TensorFlow data sets are counted only when `read.caption` reads them.
  Raises DataError if a picture folder, shard or data set is missing or damaged.
  """
  if kind == 'tfds':
    return _tfds(path, name or 'train', data_dir, size)
  if name and not os.path.isdir(os.path.join(path, name)):
    raise errors.DataError(
      f'data.path={path} has no subfolder {name!r}; set data.split and data.held_out_split to '
      'names of subfolders'
    )
  path = os.path.join(path, name) if name else path
  if kind == 'webdataset':
    index = webdataset.index(path, size)
    read = webdataset.Read(index, size)
    return _source(read, len(index.rows), size, index.fingerprint, index.otherwise)
  return _folder(path, size)


def _source(
  read: Any, count: int, size: int, fingerprint: str, otherwise: str = ''
) -> source.Source:
  shape = (size, size, 3)
  return source.Source(read, count, shape, CLASS_NAMES, fingerprint, otherwise=otherwise)


def of_source(data: source.Source, template: str) -> list[str]:
  """Returns one caption per example: the stored caption, or else one made from `template`.

  A caption made from `template` has the name of the example's class in the place of {}.
  """
  if hasattr(data.read, 'caption'):
    return [data.read.caption(i) for i in range(len(data))]
  names = of_names(data.class_names, template)
  return [names[label] for label in source.labels(data)]


def held_out(data: source.Source, most: int) -> list[str]:
  """Returns the distinct captions of a fixed random choice of at most `most` examples.

  Returns [] if the data set stores no captions.
  """
  if not hasattr(data.read, 'caption'):
    return []
  return list(dict.fromkeys(data.read.caption(int(i)) for i in data.indices(most)))


def of_names(class_names: Sequence[str], template: str) -> list[str]:
  """Returns one caption for each class: `template` with the class name in the place of {}."""
  if template.count('{}') != 1:
    raise errors.ConfigError(
      f'{template=} must contain {{}} once, where the class name goes; set latents.template to a '
      'text such as "a photo of a {}"'
    )
  return [template.replace('{}', in_words(name)) for name in class_names]


def in_words(class_name: str) -> str:
  """Returns a class name's first synonym: 'great_white_shark, shark' -> 'great white shark'."""
  return ' '.join(class_name.partition(',')[0].replace('_', ' ').split())


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
  """Reads example i from a picture file; the captions of all examples are kept in memory."""

  path: str
  names: list[str]  # paths of the picture files, relative to `path`
  captions: list[str]
  size: int
  notes: tuple[str, ...]
  changed: str  # says which captions earlier versions read otherwise, for error lines; or ''
  printed: str  # the fingerprint in earlier versions

  @property
  def labels(self) -> np.ndarray:
    return np.zeros(len(self.names), np.int32)

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    return pictures.squared(self.file_bytes(i), self.name(i), 3, self.size), 0

  def before(self) -> tuple['_Files', str]:
    return self, self.printed

  def file_bytes(self, i: int) -> bytes:
    return images.file_bytes(self.name(i))

  def caption(self, i: int) -> str:
    return self.captions[i]

  def name(self, i: int) -> str:
    return os.path.join(self.path, self.names[i])


def _folder(path: str, size: int) -> source.Source:
  """Returns the source of those pictures in the folder `path` that have a caption.

  A file_name in the table of captions is only compared with the names of the pictures found in the
  folder: a path from the table is never opened.
  """
  found = images.load(path, 'data.path', size)
  names, small = ([os.path.relpath(n, path) for n in some] for some in (found.names, found.small))
  if not names:
    raise errors.DataError(
      f'data.path={path} is no folder of pictures; set data.path to a folder of picture files'
    )
  tables = [t for t in caption_files.TABLES if os.path.isfile(os.path.join(path, t))]
  beside = {n: os.path.splitext(os.path.join(path, n))[0] + '.txt' for n in names + small}
  texts = {n: beside[n] for n in names}
  tally = caption_files.Tally()
  if tables:
    known = caption_files.table(os.path.join(path, tables[0]), tally)
  else:
    known = {n: _beside(file, n, tally) for n, file in texts.items()}
  without = [n for n in names if not known.get(n)]
  missing = sorted(known.keys() - set(names) - set(small))
  kept = [n for n in names if known.get(n)]
  where = f'data.path={path}'
  alike = _alike(path, without, missing)
  if not kept:
    raise _none(where, names, tables, missing if len(missing) == len(known) else [], alike)
  notes = tally.notes(where) + alike
  if without or missing:
    first = ' and '.join(repr(some[0]) for some in (without, missing) if some)
    notes += (
      f'{where}: {passed.counted(len(without), "picture")} without a caption and '
      f'{passed.counted(len(missing), "caption")} without a picture are left out, the first of '
      f'them {first}',
    )
  if unread := tables[1:] + [f for f in texts.values() if tables and os.path.isfile(f)]:
    one = len(unread) == 1
    notes += (
      f'{where}: all captions are read from {tables[0]}, so '
      f'{passed.counted(len(unread), "other file")} of captions {"is" if one else "are"} not read, '
      f'the first of them {os.path.basename(unread[0])!r}',
    )
  # The tables and the texts beside pictures are captions, and the notes above speak of them.
  captions_of = (*caption_files.TABLES, *(os.path.relpath(f, path) for f in beside.values()))
  notes += found.passed.without(captions_of).notes(where)
  captions = [known[n] for n in kept]
  sizes = [os.path.getsize(os.path.join(path, n)) for n in kept]
  parts = [f'{n} {size} {c}' for n, size, c in zip(kept, sizes, captions, strict=True)]
  stamps = dict(zip(names, found.stamps, strict=True))
  read = _Files(path, kept, captions, size, notes, tally.changed, source.fingerprint(parts))
  printed = source.fingerprint(
    f'{part} {stamps[n].hex()}' for n, part in zip(kept, parts, strict=True)
  )
  return _source(read, len(kept), size, printed, earlier.of_names(kept, small))


def _none(
  where: str, names: Sequence[str], tables: Sequence[str], rows: Sequence[str], alike: Sequence[str]
) -> errors.DataError:
  """Returns the error of a folder in which no picture has a caption.

  `rows` are the names in the rows of the table, if none of these is the name of a picture.
  """
  if rows and tables and not alike:
    stems = {os.path.splitext(name)[0]: name for name in names}
    row = next((row for row in rows if row in stems), rows[0])
    return errors.DataError(
      f'{where}: {tables[0]} has {passed.counted(len(rows), "row")}, and none names a picture '
      f'(such as row {row!r} beside picture {stems.get(row, names[0])!r}); write the names of the '
      'files as file_name, with their suffix: see "Captions" in docs/data.md'
    )
  return errors.DataError(
    f'{where}: none of {passed.counted(len(names), "picture")} has a caption; put <name>.txt '
    f'beside <name>.png, or put a {" or ".join(caption_files.TABLES)} with the columns file_name '
    f'and text into the folder{"".join(f" ({line})" for line in alike)}: see "Captions" in '
    'docs/data.md'
  )


def _alike(path: str, pictures: Sequence[str], rows: Sequence[str]) -> tuple[str, ...]:
  """Returns a message about names in rows that look like names of pictures, or () without any.

  Such names differ only in their Unicode form, so they name different files.
  """
  forms = {unicodedata.normalize('NFC', name): name for name in pictures}
  pairs = [(row, forms.get(unicodedata.normalize('NFC', row))) for row in rows]
  pairs = [pair for pair in pairs if pair[1] is not None]
  if not pairs:
    return ()
  return (
    f'data.path={path}: {passed.counted(len(pairs), "file name")} in the table '
    f'differ{"s" if len(pairs) == 1 else ""} from names of pictures only in their Unicode form, '
    f'such as {pairs[0][0]!a} and {pairs[0][1]!a}; write them as the files are named',
  )


def _beside(file: str, name: str, tally: caption_files.Tally) -> str:
  """Returns the caption of picture `name` in the text file `file`, or '' if there is no file."""
  try:
    return tally.caption(caption_files.text_of(file), name)
  except FileNotFoundError:
    return ''
  except (OSError, ValueError) as e:
    raise errors.DataError(
      f'{file} cannot be read ({errors.brief(e)}); every caption must be readable '
      'text: save it as UTF-8'
    ) from e


def _tfds(name: str, split: str, data_dir: str, size: int) -> source.Source:
  import tensorflow_datasets  # imported only here, because TensorFlow Datasets loads slowly

  shape = (size, size, 3)
  try:
    data = tensorflow_datasets.data_source(
      name, split=split, data_dir=data_dir or None, download=False
    )
    info = data.dataset_info
    feature = next((f for f in _FEATURES if f in info.features), None)
  except Exception:
    feature = None  # tfds.split, called below, raises the DataError that names the cause
  if feature is None:
    tfds.split(name, split, data_dir, shape)
    raise errors.DataError(
      f"{name} has classes but no captions; set data.name='tfds', and set latents.template, which "
      'makes captions from the class names'
    )
  if 'image' not in info.features:
    raise errors.DataError(
      f"{name} has the features {', '.join(info.features)}; captioned pictures need 'image' "
      f'and {feature!r}: set data.dataset to another data set'
    )
  data.decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
  parts = [str(info.full_name), split, str(len(data)), feature]
  before = source.fingerprint(parts)
  read = _Tfds(data, f'{info.full_name} {split}', feature, size, before)
  return _source(read, len(data), size, tfds.upright(before))


@dataclasses.dataclass(frozen=True, eq=False)
class _Tfds:
  """Reads example i of a TensorFlow data set whose captions are in the feature named `feature`."""

  data: Any
  where: str  # name of the data set and its split, for error lines
  feature: str
  size: int
  printed: str  # the fingerprint in earlier versions
  # Counts the captions that `caption` returned; `counted` holds the numbers of their examples.
  tally: caption_files.Tally = dataclasses.field(default_factory=caption_files.Tally)
  counted: set[int] = dataclasses.field(default_factory=set)

  @property
  def notes(self) -> tuple[str, ...]:
    return self.tally.notes(self.where)

  @property
  def changed(self) -> str:
    return self.tally.changed

  @property
  def labels(self) -> np.ndarray:
    return np.zeros(len(self.data), np.int32)

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    example = self._example(i)
    self._text(i, example)  # raises DataError if example i has no caption
    return tfds.pixels_of(example['image'], self.name(i), (self.size, self.size, 3)), 0

  def before(self) -> tuple['_Tfds', str]:
    return self, self.printed

  def file_bytes(self, i: int) -> bytes | None:
    image = self._example(i)['image']
    return image if isinstance(image, bytes) else None

  def caption(self, i: int) -> str:
    text = self._text(i, self._example(i))
    if i in self.counted:
      return caption_files.one_line(text)
    self.counted.add(i)
    return self.tally.caption(text, f'example {i}')

  def name(self, i: int) -> str:
    return f'example {i} of {self.where}'

  def _text(self, i: int, example: dict[str, Any]) -> str:
    found = _first_text(example[self.feature])
    if not caption_files.one_line(found):
      raise errors.DataError(
        f'{self.name(i)} has no text in {self.feature!r}; set data.dataset to a data set whose '
        'pictures all have captions'
      )
    return found

  def _example(self, i: int) -> dict[str, Any]:
    try:
      return self.data[i]
    # All exceptions are caught, because array_record and protobuf raise exceptions of their own.
    except Exception as e:
      reason = errors.brief(e)
      raise errors.DataError(
        f'{self.name(i)} cannot be read: {reason}; prepare the data set again with `tfds build`'
      ) from e


def _first_text(value: Any) -> str:
  """Returns the first text in a string, a list of captions, or a dict with a field 'text'."""
  if isinstance(value, dict):
    return _first_text(value.get('text', ''))
  if isinstance(value, list | tuple | np.ndarray):
    texts = map(_first_text, value)
    return next(filter(caption_files.one_line, texts), '')
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  return value if isinstance(value, str) else ''
