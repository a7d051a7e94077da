"""TensorFlow Datasets, read through tfds.data_source: a prepared set needs no TensorFlow."""

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
  """Returns (training, held out) of data.dataset, from its features 'image' and 'label'.

  A split may be a part, such as 'train[:90%]'. data.held_out suits small sets only, because it
  reads the label of every example.
  """
  train = split(settings.dataset, settings.split, settings.path, shape)
  if settings.held_out:
    return source.held_out(train, settings.held_out)
  held = split(settings.dataset, settings.held_out_split, settings.path, shape)
  splits = (settings.split, settings.held_out_split)
  source.same_classes(train, held, f'data.dataset={settings.dataset}', splits)
  return train, held


def split(name: str, part: str, data_dir: str, shape: tuple[int, int, int]) -> source.Source:
  """Returns one split of a prepared set; pictures.square crops and resizes its pictures.

  `data_dir` is the folder of prepared sets, or '' for the library's default.
  """
  import tensorflow_datasets  # a slow import that only this function needs

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
      f'{where} is no set that TensorFlow Datasets {tensorflow_datasets.__version__} knows'
      f'{" or finds in " + data_dir if data_dir else ""}; check its spelling'
    ) from e
  except Exception as e:  # AssertionError, ValueError, NotImplementedError, FileNotFoundError, ...
    reason = str(e).strip().partition('\n')[0][:160] or type(e).__name__
    folder = f' --data_dir={data_dir}' if data_dir else ''
    raise errors.DataError(
      f'{where}, split {part!r}, cannot be read: {reason}; unless the split is misspelt, prepare '
      f'the set: pip install tensorflow && tfds build {name} --file_format=array_record{folder}'
    ) from e
  names = getattr(features['label'], 'names', None) if 'label' in features else None
  if not names or 'image' not in features:
    raise errors.DataError(
      f"{where} has the features {', '.join(features)}; it needs 'image' and a class as 'label'"
    )
  # Undecoded files come out, so that pictures.decode can refuse damage and convert CMYK.
  data.decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
  parts = [str(info.full_name), part, str(count), *names]
  return source.Source(
    _Read(data, f'{info.full_name} {part}', shape), count, shape, tuple(names),
    source.fingerprint(parts),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
  """Reads example i as (pixels, label); a class and not a closure, because workers unpickle it."""

  data: Any
  where: str  # the names of the set and the split, for error lines
  shape: tuple[int, int, int]

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    example, name = self._example(i), self.name(i)
    image = example['image']
    if isinstance(image, bytes):
      pixels = pictures.decode(image, name, self.shape[2])
    else:
      pixels = pictures.convert(np.asarray(image), name, self.shape[2])
    return pictures.square(pixels, self.shape[0]), int(example['label'])

  def label(self, i: int) -> int:
    return int(self._example(i)['label'])

  def name(self, i: int) -> str:
    return f'example {i} of {self.where}'

  def part(self, i: int) -> str:
    """Returns the name of example i, for a fingerprint."""
    return self.name(i)

  def _example(self, i: int) -> dict[str, Any]:
    try:
      return self.data[i]
    except Exception as e:  # array_record raises RuntimeError, protobuf DecodeError, ...
      reason = errors.brief(e)
      raise errors.DataError(
        f'{self.name(i)} cannot be read: {reason}; prepare the set again'
      ) from e
