"""Checks the flags of `gdistill prepare`, and stores the flags in prepare.json for later runs."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from gdistill import errors
from gdistill.data import files
from gdistill.data import records
from gdistill.data import source
from gdistill.recipe import class_names as names_of_classes

IMAGENET = 1_281_167  # number of pictures in ImageNet's training set
FILE = 'prepare.json'  # file in the output folder with the flags of `gdistill prepare`
_WNID = re.compile(r'n\d{8}')  # WordNet's identifier of an ImageNet class, such as n01440764
_SPLIT = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}')


@dataclasses.dataclass(frozen=True)
class Settings:
  """The flags of `gdistill prepare`."""

  source: str  # path of a folder or an archive of pictures, or tfds:NAME
  out: str
  size: int = 64
  channels: int = 3
  split: str = 'train'
  held_out_split: str = 'validation'  # if '', no held-out split is prepared
  data_dir: str = ''  # folder of prepared TensorFlow Datasets; '' is that library's default
  shard_size: int = 4096
  workers: int = 1
  skip_corrupt: bool = False
  allow_incomplete: bool = False

  @property
  def shape(self) -> tuple[int, int, int]:
    return self.size, self.size, self.channels

  @property
  def splits(self) -> list[str]:
    return [self.split, *([self.held_out_split] if self.held_out_split else [])]

  @property
  def tfds(self) -> str:
    """Returns NAME of --source=tfds:NAME, or '' if --source is a folder or an archive."""
    return self.source.partition(':')[2] if self.source.startswith('tfds:') else ''


def check(settings: Settings) -> None:
  """Raises ConfigError for a wrong flag or output folder, DataError for a missing source.

  `check` writes no files.
  """
  for name, low, high in (('size', 1, 4096), ('workers', 1, 256), ('shard_size', 1, 10**6)):
    value = getattr(settings, name)
    if not low <= value <= high:
      raise errors.ConfigError(f'--{name}={value} must be from {low} to {high}')
  if settings.channels not in (1, 3):
    raise errors.ConfigError(f'--channels={settings.channels} must be 1 (grey) or 3 (colour)')
  for name in ('split', 'held_out_split'):
    value = getattr(settings, name)
    if value and not _SPLIT.fullmatch(value):
      raise errors.ConfigError(
        f'--{name}={value!r} names a folder of --source and must be 1 to 64 characters of A-Z '
        'a-z 0-9 . _ -; of a folder deeper down, give the folder above it as --source'
      )
  if settings.held_out_split and settings.split in ('', settings.held_out_split):
    raise errors.ConfigError(
      f'--held_out_split={settings.held_out_split!r} must differ from --split={settings.split!r}, '
      "and must be '' if --split is ''"
    )
  for name in ('source', 'out'):
    if '://' in getattr(settings, name):
      raise errors.ConfigError(
        f'--{name}={getattr(settings, name)} must be a local path; mount the remote storage, '
        'or copy the data to a local disk'
      )
  if not settings.tfds and not os.path.exists(settings.source):
    raise errors.DataError(
      f'--source={settings.source} does not exist; give the path of a folder or an archive, or '
      'tfds:NAME'
    )
  if begun(settings) is None and os.path.isdir(settings.out):
    others = [n for n in os.listdir(settings.out) if n != 'lock.json' and not n.startswith('.tmp-')]
    if others:
      raise errors.ConfigError(
        f'--out={settings.out} holds {others[0]} and was not begun by `gdistill prepare`; set '
        '--out to an empty or a new folder'
      )


def check_imagenet(settings: Settings, class_names: Sequence[str], count: int) -> None:
  """Raises DataError if --source is ImageNet, but `count` is not ImageNet's 1,281,167 pictures."""
  wnids = len(class_names) == 1000 and all(_WNID.fullmatch(n) for n in class_names)
  imagenet = wnids or re.split('[/:]', settings.tfds)[0] == 'imagenet2012'
  if imagenet and count != IMAGENET and not settings.allow_incomplete:
    raise errors.DataError(
      f'--source={settings.source} is ImageNet, whose training set has {IMAGENET:,} pictures, but '
      f'--split={settings.split} has {count:,}; add the missing pictures, or '
      'pass --allow_incomplete'
    )


def begin(settings: Settings, class_names: Sequence[str]) -> None:
  """Writes the flags to prepare.json in a new output folder.

  Raises ConfigError if an earlier run began the output folder with other flags or other class
  names.
  """
  classes, before = source.fingerprint(class_names), begun(settings)
  if before is None:
    names = {'classes': classes, 'class_names': list(class_names), 'upright': True}
    now = {**_flags(settings), **names, 'format': records.VERSION}
    files.write(os.path.join(settings.out, FILE), files.dumps(now))
  elif before['classes'] != classes:
    names = before.get('class_names')  # prepare.json of older versions has no names
    odd = ''
    if isinstance(names, list) and all(isinstance(n, str) for n in names):
      odd = names_of_classes.difference(class_names, names, ('--source', '--out'))
    raise errors.ConfigError(
      f'--source={settings.source} has other classes than {settings.out} was begun with'
      f'{": " + odd if odd else ""}; set --out to another folder'
    )


def begun(settings: Settings) -> dict[str, Any] | None:
  """Returns the flags in the prepare.json of the output folder, or None for a new folder.

  Raises ConfigError if an earlier run began the output folder with other flags or another format
  version.
  """
  file = os.path.join(settings.out, FILE)
  try:
    with open(file, 'rb') as f:
      before = json.load(f)
    now = _flags(settings)
    differ = [f'--{k}={now[k]} was {before[k]}' for k in now if before[k] != now[k]]
    if before['format'] != records.VERSION:
      differ.append(f'the format was {before["format"]!r:.20}, now {records.VERSION}')
    if not isinstance(before['classes'], str):
      raise TypeError
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise errors.ConfigError(f'{file} cannot be read; set --out to another folder') from e
  if differ:
    raise errors.ConfigError(
      f'--out={settings.out} was begun with other settings: {"; ".join(differ)}; repeat the '
      'command with the earlier values, or set --out to another folder'
    )
  return before


def is_earlier(settings: Settings) -> bool:
  """Returns whether an earlier version of gdistill, which read pictures otherwise, began --out."""
  before = begun(settings)
  return before is not None and not before.get('upright')


def _flags(settings: Settings) -> dict[str, Any]:
  """Returns the flags that must not change when the command is repeated.

  A local source is represented by the last part of its path, so that a user may move the source.
  """
  same = {k: getattr(settings, k) for k in ('size', 'channels', 'shard_size', 'split')}
  where = settings.source
  if not settings.tfds:
    where = os.path.basename(os.path.abspath(settings.source))
  return {**same, 'held_out_split': settings.held_out_split, 'source': where}
