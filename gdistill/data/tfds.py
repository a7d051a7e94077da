"""Reads a prepared data set of TensorFlow Datasets by tfds.data_source, without TensorFlow."""

import dataclasses
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import pictures
from gdistill.data import source
from gdistill.recipe import settings as recipes


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns (training, held out): two parts of the TensorFlow data set that data.dataset names.

  The data set must have the features 'image' and 'label'. data.split and data.held_out_split may
  name a part of a split, such as 'train[:90%]'. If data.held_out is above 0, `load` reads the label
  of every example, so data.held_out suits small data sets only.
  """
  train = split(settings.dataset, settings.split, settings.path, shape)
  if settings.held_out:
    return source.held_out(train, settings.held_out)
  held = split(settings.dataset, settings.held_out_split, settings.path, shape)
  splits = (settings.split, settings.held_out_split)
  source.same_classes(train, held, f'data.dataset={settings.dataset}', splits)
  return train, held


def split(name: str, part: str, data_dir: str, shape: tuple[int, int, int]) -> source.Source:
  """Returns a Source of split `part` of the data set `name` of TensorFlow Datasets.

  `pictures.square` crops and resizes the pictures. `data_dir` is the folder of the prepared data
  sets, or '' for the default folder of TensorFlow Datasets.
  """
  import tensorflow_datasets  # imported inside the function, because the import is slow

  where = f'data.dataset={name}'
  try:
    data = tensorflow_datasets.data_source(
      name, split=part, data_dir=data_dir or None, download=False
    )
    info = data.dataset_info
    features = info.features
    count = len(data)
  except tensorflow_datasets.core.registered.DatasetNotFoundError as e:
    raise errors.DataError(
      f'{where} is no data set that TensorFlow Datasets {tensorflow_datasets.__version__} knows'
      f'{" or finds in " + data_dir if data_dir else ""}; check the spelling of '
      f'{name}'
    ) from e
  except Exception as e:  # TensorFlow Datasets raises many kinds of exceptions
    reason = str(e).strip().partition('\n')[0][:160] or type(e).__name__
    folder = f' --data_dir={data_dir}' if data_dir else ''
    raise errors.DataError(
      f'{where}, split {part!r}, cannot be read: {reason}; check the name of the split, or prepare '
      f'the data set: pip install tensorflow && tfds build {name} '
      f'--file_format=array_record{folder}'
    ) from e
  names = getattr(features['label'], 'names', None) if 'label' in features else None
  if not names or 'image' not in features:
    raise errors.DataError(
      f'{where} has the features {", ".join(features)}; class-conditional training needs '
      "'image' and a class as 'label': choose another data set"
    )
  # The decoder of TensorFlow Datasets is skipped, because pictures.decode raises an error for a
  # damaged picture and converts CMYK.
  data.decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
  before = source.fingerprint([str(info.full_name), part, str(count), *names])
  read = _Read(data, f'{info.full_name} {part}', shape, before)
  return source.Source(read, count, shape, tuple(names), upright(before))


def upright(before: str) -> str:
  """Returns the fingerprint of a data set that had the fingerprint `before` in earlier versions.

  Earlier versions did not turn pictures upright, and the fingerprint has no bytes of the pictures.
  """
  return source.fingerprint([before, 'upright'])


def pixels_of(image: Any, name: str, shape: tuple[int, int, int]) -> np.ndarray:
  """Returns an image of TensorFlow Datasets, bytes or pixels, as uint8 pixels of `shape`.

  Raises pictures.TooSmall for an image that would be enlarged too much: the images of a data set
  are not looked at before they are read, because that would read the whole data set.
  """
  if isinstance(image, bytes):
    pixels = pictures.decode(image, name, shape[2])
  else:
    pixels = pictures.convert(np.asarray(image), name, shape[2])
  remedy = '`gdistill prepare --source=tfds:NAME` passes over such pictures: train on its records'
  return pictures.checked_square(pixels, name, shape[0], remedy)


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
  """Reads example i as (pixels, label).

  The reader is a class, not a closure, because worker processes get the reader by pickle, and
  closures cannot be pickled.
  """

  data: Any
  where: str  # name of the data set and of the split, for error lines
  shape: tuple[int, int, int]
  printed: str  # the fingerprint in earlier versions
  upright: bool = True  # False: `part` is as in earlier versions

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    example, name = self._example(i), self.name(i)
    pixels = pixels_of(example['image'], name, self.shape)
    return pixels, int(example['label'])

  def before(self) -> tuple['_Read', str]:
    return dataclasses.replace(self, upright=False), self.printed

  def file_bytes(self, i: int) -> bytes | None:
    image = self._example(i)['image']
    return image if isinstance(image, bytes) else None

  def label(self, i: int) -> int:
    return int(self._example(i)['label'])

  def name(self, i: int) -> str:
    return f'example {i} of {self.where}'

  def part(self, i: int) -> str:
    """Returns the name of example i, from which a fingerprint of examples is computed."""
    return f'{self.name(i)}{" upright" if self.upright else ""}'

  def _example(self, i: int) -> dict[str, Any]:
    try:
      return self.data[i]
    except Exception as e:  # array_record and protobuf each raise their own exceptions
      reason = errors.brief(e)
      raise errors.DataError(
        f'{self.name(i)} cannot be read: {reason}; prepare the data set again with `tfds build`'
      ) from e
