"""One small set of labelled pictures, which tests write in the format of every kind of source."""

import hashlib
import io
import os
import re

import numpy as np
from PIL import Image

from gdistill.data import prepare
from gdistill.data import prepare_settings
from gdistill.recipe import settings as recipes

CLASSES = ('ape', 'bee', 'cat')
SIZE = 12
SHAPE = (SIZE, SIZE, 3)
COUNTS = {'train': (8, 5, 7), 'validation': (3, 2, 4)}  # pictures of each class


def pixels_of(split: str, label: int, number: int, size=(SIZE, SIZE)) -> np.ndarray:
  """Returns the pixels of one picture, which every source must reproduce."""
  key = (len(split), label, number)
  return np.random.default_rng(key).integers(0, 256, (*size, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = 'PNG', mode: str | None = None) -> bytes:
  out = io.BytesIO()
  Image.fromarray(pixels.squeeze(), mode).save(out, kind)
  return out.getvalue()


def write(path, data: bytes):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def examples(split: str) -> list[tuple[str, np.ndarray, int]]:
  """Returns [(name, pixels, label)] in the order of a folder."""
  return [
    (f'{split}/{CLASSES[label]}/{number}.png', pixels_of(split, label, number), label)
    for label, count in enumerate(COUNTS[split])
    for number in range(count)
  ]


def settings(name: str, path='', **more) -> recipes.Data:
  held = {'held_out_split': 'validation', 'held_out': 0.0}
  return recipes.Data(name=name, path=str(path), **{**held, **more})


def prepared(source, out, **more) -> dict:
  """Does the work of `gdistill prepare` without the command line; returns {split: index}."""
  flags = {'size': SIZE, 'shard_size': 6, **more}
  wanted = prepare_settings.Settings(str(source), str(out), **flags)
  prepare_settings.check(wanted)
  os.makedirs(out, exist_ok=True)
  try:
    return prepare.work(prepare.plan(wanted, look), look, lambda done, speed: None)
  finally:
    prepare.clean(wanted)


def contents(out) -> dict[str, str]:
  """Returns {file: digest} of the files that `gdistill prepare` leaves."""
  found = {
    str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest()
    for f in sorted(out.rglob('*'))
    # A kill can leave a temporary file of the lock, which a run a minute later removes.
    if f.is_file() and not re.fullmatch(r'\.tmp-[0-9a-f]{16}', f.name)
  }
  assert not [n for n in found if '.tmp-' in n or 'lock.json' in n], found
  return found


def look():
  pass


def write_tfds(path, found: dict[str, list[tuple[bytes, int]]]) -> None:
  """Writes encoded pictures as TensorFlow Datasets prepares them, without TensorFlow."""
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module

  builder = tfds.builder('cifar10', data_dir=str(path), file_format='array_record')
  image = tfds.features.Image(shape=(None, None, 3))
  label = tfds.features.ClassLabel(names=CLASSES)
  features = tfds.features.FeaturesDict({'image': image, 'label': label})
  builder.info._features = features
  os.makedirs(builder.data_dir)
  infos = []
  for split, examples in found.items():
    file = os.path.join(builder.data_dir, f'cifar10-{split}.array_record-00000-of-00001')
    writer = array_record_module.ArrayRecordWriter(file, 'group_size:1')
    for data, label in examples:
      writer.write(features.serialize_example({'image': io.BytesIO(data), 'label': label}))
    writer.close()
    template = tfds.core.ShardedFileTemplate(
      data_dir=builder.data_dir, dataset_name='cifar10', split=split,
      filetype_suffix='array_record',
    )  # fmt: skip
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(examples)],
        num_bytes=os.path.getsize(file),
        filename_template=template,
      )
    )
  builder.info.set_splits(tfds.core.SplitDict(infos))
  builder.info.write_to_directory(builder.data_dir)
