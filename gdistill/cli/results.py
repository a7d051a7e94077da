"""Pictures in, results, figures and a sheet out, batch by batch: stopped, it goes on."""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gdistill import errors
from gdistill.cli import edge

_MOST_ON_SHEET = 16  # pictures: a sheet is to be looked at
_REQUEST, _FIGURES, _SHEET = 'request.json', 'figures.json', 'sheet.png'
_MOST_ENLARGED = 4  # times: of fewer pixels a picture says too little


class Sources:
  """The files that a flag names, a picture or those of a folder, and the name of each.

  A name is the path within the folder without its suffix, or with it where two would be the same.
  """

  def __init__(self, path: str, flag: str):
    from gdistill.data import images

    self.path, self.flag = path, flag
    if os.path.isdir(path):
      self.files, top = self._of_folder(images.files(path, flag)), path
    elif os.path.isfile(path):
      self.files, top = (path,), os.path.dirname(path) or '.'
    else:
      where = 'must be on this machine' if '://' in path else 'does not exist'
      raise errors.DataError(f'{flag}={path} {where}; name a picture or a folder of them')
    paths = [os.path.relpath(f, top) for f in self.files]
    self.stems = [os.path.splitext(p)[0] for p in paths]
    taken = collections.Counter([*self.stems, os.path.splitext(_SHEET)[0]])
    self.names = [s if taken[s] == 1 else p for s, p in zip(self.stems, paths, strict=True)]
    for name, count in collections.Counter(self.names).items():
      if count > 1:
        raise errors.DataError(f'{flag}={path} has {count} pictures {name}.*; give them two names')

  def __len__(self) -> int:
    return len(self.files)

  def _of_folder(self, files: Sequence[str]) -> tuple[str, ...]:
    """Without the sheets of edits that lie among their results."""
    return tuple(
      f for f in files
      if os.path.basename(f) != _SHEET
      or not os.path.exists(os.path.join(os.path.dirname(f), _REQUEST))
    )  # fmt: skip

  def read(self, i: int, channels: int, under: str = 'white') -> Any:
    """[H, W, channels] uint8 of a file, upright."""
    from gdistill.data import images

    return images.decoded(self.files[i], channels, True, under)


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to be drawn: every source with every seed.

  `row` holds what is the same for all as one row, `make(batch_size)` is the gdistill.editing
  editor, and `mask(i)` [H, W, 1] what it is to paint of source i, where there are masks.
  """

  title: str
  sources: Sources
  shape: tuple[int, int, int]  # of pictures as the network works on them
  seeds: Sequence[int]
  row: Mapping[str, Any]
  counts: Mapping[str, int]
  make: Callable[[int], Any]
  mask: Callable[[int], Any] | None = None

  def source(self, i: int) -> Any:
    """Picture i at working size."""
    return fitted(self.sources, i, self.sources.read(i, self.shape[2]), self.shape)

  def name(self, i: int, seed: int) -> str:
    """The file of a result."""
    suffix = f'_seed{seed}' if len(self.seeds) > 1 else ''
    return f'{self.sources.names[i]}{suffix}.png'


def fitted(sources: Sources, i: int, pixels: Any, shape: Sequence[int]) -> Any:
  """Picture i brought to [height, width] of `shape`; DataError where it has too few pixels."""
  from gdistill.data import pictures

  height, width = shape[:2]
  if pixels.shape[0] * _MOST_ENLARGED < height or pixels.shape[1] * _MOST_ENLARGED < width:
    raise errors.DataError(
      f'{sources.flag}={sources.files[i]} is {pixels.shape[1]} x {pixels.shape[0]} pixels, too few '
      f'for the {width} x {height} of the network; give a larger one'
    )
  return pictures.fitted(pixels, height, width)


def inside(out: str, folder: str) -> bool:
  """Whether results would lie among the pictures of a folder."""
  top = os.path.join(os.path.abspath(folder), '')
  return os.path.isdir(folder) and os.path.join(os.path.abspath(out), '').startswith(top)


def stamps(*sources: Sources) -> list[list[Any]]:
  """[file, bytes, time of its last change] of all files: another list, other pictures."""
  files = [(file, os.stat(file)) for some in sources for file in some.files]
  return [[file, found.st_size, found.st_mtime_ns] for file, found in files]


def check_out(out: str, request: Mapping[str, Any]) -> None:
  """ConfigError unless --out is new, or holds the first results of the very same request."""
  from gdistill.workdir import storage

  file, wanted = storage.path(out) / _REQUEST, storage.jsonable(dict(request))
  if not storage.exists(file):
    edge.check_new(out)
    return
  found = storage.read_json(file)
  found = found if isinstance(found, dict) else {}
  other = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
  if other:
    values = (f'{found.get(k)!r} -> {wanted.get(k)!r}' for k in other)
    said = ('pictures' if k == 'files' else f'{k}: {v}' for k, v in zip(other, values, strict=True))
    raise errors.ConfigError(
      f'--out={out} holds results of another request ({"; ".join(said)}); name another folder'
    )


def run(job: Job, out: str, request: Mapping[str, Any], scale: int | None) -> int:
  """Draws what is not there yet, then writes figures and a sheet of all.

  Without a `scale` the sheet's pictures are enlarged to some 64 pixels.
  """
  from gdistill.drawing import sheets
  from gdistill.process import interrupt
  from gdistill.process import progress
  from gdistill.workdir import storage

  out = storage.path(out)
  whole = [(i, seed) for i in range(len(job.sources)) for seed in job.seeds]
  todo = [one for one in whole if not storage.exists(out / job.name(*one))]
  done, size, edit = len(whole) - len(todo), _batch(job.shape, len(todo)), None
  with interrupt.Interrupt() as stop, progress.Progress(job.title, len(whole), done) as bar:
    for first in range(0, len(todo), size):
      some = todo[first : first + size]
      rows = _rows(job, some)
      edit = edit or job.make(size)
      drawn = edit(rows, job.counts)
      storage.write_json(out / _REQUEST, request)  # before the first result
      for one, pixels in zip(some, drawn, strict=True):
        storage.write_bytes(out / job.name(*one), sheets.png(pixels))
      done += len(some)
      bar.update(done)
      stop.check()
    _tell(job, out, scale or max(1, 64 // max(job.shape[:2])), stop)
  return 0


def _rows(job: Job, some: Sequence[tuple[int, int]]) -> dict[str, Any]:
  """What the editor reads of some (picture, seed)."""
  import jax
  import numpy as np

  index = list(dict.fromkeys(i for i, _ in some))
  place = [index.index(i) for i, _ in some]
  rows = jax.tree.map(lambda a: np.repeat(a, len(some), axis=0), dict(job.row))
  rows['pixels'] = np.stack([job.source(i) for i in index])[place]
  rows['seeds'] = np.array([seed for _, seed in some], np.uint32)
  if job.mask:
    rows['mask'] = np.stack([job.mask(i) for i in index])[place]
  return rows


def _tell(job: Job, out: Any, scale: int, stop: Any) -> None:
  """Writes figures and the sheet of results that are all there, and says so."""
  import numpy as np

  from gdistill.data import pictures
  from gdistill.drawing import sheets
  from gdistill.process import progress
  from gdistill.workdir import storage

  changed, figures, sheet = 0, [], []
  for i, file in enumerate(job.sources.files):
    stop.check()
    source = job.source(i)
    changed += job.sources.read(i, job.shape[2]).shape != source.shape
    tiles = [source]
    if job.mask:  # what the network is shown
      tiles.append(np.where(job.mask(i) > 0, np.uint8(128), source))
    for seed in job.seeds:
      name = job.name(i, seed)
      pixels = pictures.decode(storage.read_bytes(out / name), str(out / name), job.shape[2])
      rms = float(np.sqrt(np.mean(((pixels.astype(np.float64) - source) / 127.5) ** 2)))
      figures.append({'image': file, 'result': name, 'seed': seed, 'rms_to_source': round(rms, 6)})
      tiles.append(pixels)
    if i < _MOST_ON_SHEET:
      sheet.append(np.stack(tiles))
  storage.write_json(out / _FIGURES, figures)
  storage.write_bytes(out / _SHEET, sheets.png(sheets.sheet(np.stack(sheet), scale)))
  height, width = job.shape[:2]
  if changed:
    progress.say(f'{changed} brought to {width} x {height}: centre crop, then resized')
  more = f', of the first {_MOST_ON_SHEET}' if len(job.sources) > _MOST_ON_SHEET else ''
  progress.say(
    f'{len(figures)} picture{"s" if len(figures) > 1 else ""} in {out}; {_SHEET} has sources and '
    f'results beside each other{more}; {_FIGURES} how far they are apart'
  )


def _batch(shape: Sequence[int], most: int) -> int:
  """Pictures at a time, a power of two: on each device 64 of 64 x 64, one of 512 x 512."""
  import jax

  each = max(1, min(64, 2**18 // (shape[0] * shape[1])))
  return min(1 << max(most - 1, 0).bit_length(), each * jax.local_device_count())
