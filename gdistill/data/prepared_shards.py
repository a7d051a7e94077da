"""Writes shards of prepared pictures, a JSON file beside each shard, and the index of each split.

A shard is written under a temporary name and renamed once its bytes are on the disk. After the
shard is renamed, the JSON file beside the shard is written, with the shard's sha256 and the
fingerprint of the shard's pictures. The index of a split is written after all shards of the split.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import files
from gdistill.data import pictures
from gdistill.data import prepare_settings
from gdistill.data import records
from gdistill.data import source


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard: the file that holds the examples `first` to `last` - 1 of a split."""

  split: str
  number: int
  first: int
  last: int
  key: str  # fingerprint of the pictures that the shard is made from
  done: bool  # True if an earlier run wrote the shard; `make` then checks the sha256

  @property
  def name(self) -> str:
    return f'{self.number:05d}.array_record'

  @property
  def json(self) -> str:
    return f'{self.number:05d}.json'


def plan(
  settings: prepare_settings.Settings, split: str, data: source.Source, number: int
) -> Shard:
  """Returns shard `number` of a split.

  The shard is marked as done if an earlier run of `gdistill prepare` wrote the shard from the same
  pictures.
  """
  first = number * settings.shard_size
  last = min(first + settings.shard_size, len(data))
  key = source.fingerprint(data.read.part(i) for i in range(first, last))
  shard = Shard(split, number, first, last, key, done=False)
  found = description(settings.out, shard)
  done = found is not None and (settings.skip_corrupt or not found['skipped'])
  return dataclasses.replace(shard, done=done)


def description(out: str, shard: Shard) -> dict[str, Any] | None:
  """Returns the contents of the JSON file beside a shard.

  Returns None if the JSON file is missing, damaged or describes other pictures, or if the shard
  file is missing or has another size than the JSON file says.
  """
  folder = os.path.join(out, shard.split)
  try:
    with open(os.path.join(folder, shard.json), 'rb') as f:
      found = json.load(f)
    file = os.path.join(folder, shard.name)
    same = found['key'] == shard.key and found['digest'] == records.digest(found)
    return found if same and found['bytes'] == os.path.getsize(file) else None
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None


def make(
  settings: prepare_settings.Settings, data: source.Source, shard: Shard, stop: Any, counter: Any
) -> list[str]:
  """Writes a shard and returns one error line for each unreadable picture of the shard.

  A shard that is done is written again only if its sha256 is wrong. A shard with unreadable
  pictures is written only with --skip_corrupt. `stop` is an event; once `stop` is set, `make`
  returns and writes no shard. `counter` counts the pictures read for the shard, unless the shard is
  marked as done.
  """
  folder = os.path.join(settings.out, shard.split)
  if shard.done:
    expected = description(settings.out, shard)['sha256']
    if files.sha256(os.path.join(folder, shard.name)) == expected:
      return []
  from array_record.python import array_record_module  # imported late, as the import is slow

  temporary = os.path.join(folder, f'{files.TEMPORARY}{secrets.token_hex(8)}')
  corrupt, skipped, small, labels = [], [], [], []
  writer = array_record_module.ArrayRecordWriter(temporary, records.WRITER)
  try:
    for i in range(shard.first, shard.last):
      if stop.is_set():
        return []
      try:
        pixels, label = data[i]
      except pictures.TooSmall:
        small.append(data.read.name(i))
      except errors.DataError as e:
        corrupt.append(str(e))
        skipped.append(data.read.name(i))
      else:
        if not corrupt or settings.skip_corrupt:
          writer.write(records.record(pixels, label, shard.number, len(labels)))
          labels.append(label)
      counter.value += not shard.done
    writer.close()
    if corrupt and not settings.skip_corrupt:
      return corrupt
    found = {
      'key': shard.key, 'count': len(labels), 'bytes': os.path.getsize(temporary),
      'sha256': files.sha256(temporary), 'labels': labels, 'skipped': skipped,
      **({'small': small} if small else {}),
    }  # fmt: skip
    files.publish(temporary, os.path.join(folder, shard.name))
    found['digest'] = records.digest(found)
    files.write(os.path.join(folder, shard.json), files.dumps(found))
    return corrupt
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def index(
  settings: prepare_settings.Settings,
  split: str,
  data: source.Source,
  shards: Sequence[Shard],
  upright: bool = True,
) -> dict[str, Any]:
  """Writes the file of a split's labels and returns the contents of the split's index.json.

  `upright` is False for a folder that an earlier version of gdistill began: the index then is the
  one that this version would have written. Raises DataError if a shard of the split is missing, if
  the split has no readable picture, or if a class has no readable picture for training.
  """
  folder = os.path.join(settings.out, split)
  found = [description(settings.out, s) for s in shards]
  if None in found:
    raise errors.DataError(
      f'{folder}: a shard was changed or removed while `gdistill prepare` ran; repeat the command'
    )
  kept = {s.name for s in shards} | {s.json for s in shards}
  for name in os.listdir(folder):
    if re.fullmatch(r'\d{5}\.(array_record|json)', name) and name not in kept:
      os.unlink(os.path.join(folder, name))  # a shard left from a source that had more pictures
  labels = np.concatenate([np.array(d['labels'], '<i4') for d in found]).tobytes()
  if not labels:
    raise errors.DataError(
      f'--source={settings.source}: all pictures of {split!r} are damaged or too small; replace '
      'the pictures, or set --source to other pictures'
    )
  _check_classes(settings, split, data, found)
  files.write(os.path.join(folder, records.LABELS), labels)
  result = {
    'format': records.FORMAT,
    'version': records.VERSION,
    'shape': list(settings.shape),
    'count': sum(d['count'] for d in found),
    'class_names': list(data.class_names),
    'labels': hashlib.sha256(labels).hexdigest(),
    'shards': [
      {'name': shard.name, **{k: d[k] for k in ('count', 'bytes', 'sha256')}}
      for shard, d in zip(shards, found, strict=True)
    ],
    'made': {
      'crop': 'centre square',
      'resize': 'area, rounded to nearest',
      **({'orientation': 'upright, as EXIF says'} if upright else {}),
      'source': settings.source if settings.tfds else 'class folders',
      'split': split,
      'fingerprint': data.fingerprint,
      'skipped': [name for d in found for name in d['skipped']],
      **({'small': small} if (small := [n for d in found for n in d.get('small', ())]) else {}),
    },
  }
  return {**result, 'digest': records.digest(result)}


def _check_classes(
  settings: prepare_settings.Settings,
  split: str,
  data: source.Source,
  found: Sequence[dict[str, Any]],
) -> None:
  """Raises DataError if a class of the training split has no picture in the shards `found`."""
  counts = np.bincount([k for d in found for k in d['labels']], minlength=len(data.class_names))
  empty = [data.class_names[k] for k in np.flatnonzero(counts == 0)]
  if not empty or split != settings.split:
    return
  skipped = [name for d in found for name in d['skipped']]
  first = next((n for n in skipped if f'/{empty[0]}/' in f'/{n}'), '')
  raise errors.DataError(
    f'--source={settings.source}: the class {empty[0]!r}'
    f'{f" and {len(empty) - 1:,} more" if empty[1:] else ""} would have no pictures for training'
    f'{f", because --skip_corrupt leaves them out, such as {first}" if first else ""}; add '
    'readable pictures of this class that are large enough, or remove the class'
  )
