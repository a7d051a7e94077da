"""What a workdir keeps of each cell of a grid: pictures, their measure, and the figures."""

import dataclasses
import hashlib
import io
import json
from typing import Any

import jax
import numpy as np

from gdistill import errors
from gdistill.evaluation import protocol
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import measure
from gdistill.workdir import storage


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """One process's share of a cell: the first pictures, and the measure of all pictures.

  `latents` are the latents that the pictures were decoded from, [k, 0] in pixel space.
  """

  pixels: np.ndarray  # [k, H, W, C]
  latents: np.ndarray  # [k, h, w, c] float16
  index: np.ndarray  # [k]
  measured: measure.Measured
  seconds: float
  drawn: int

  def merge(self, other: 'Part') -> 'Part':
    """Returns the sum of both parts; its seconds are those of the slower process."""
    index = np.concatenate([self.index, other.index])
    order = np.argsort(index)
    return Part(
      np.concatenate([self.pixels, other.pixels])[order],
      np.concatenate([self.latents, other.latents])[order],
      index[order],
      self.measured.merge(other.measured),
      max(self.seconds, other.seconds),
      self.drawn + other.drawn,
    )

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns all fields as arrays of an .npz file."""
    arrays = {f'measured_{k}': v for k, v in self.measured.to_arrays().items()}
    arrays |= {'pixels': self.pixels, 'latents': self.latents, 'index': self.index}
    return arrays | {'seconds': np.float64(self.seconds), 'drawn': np.int64(self.drawn)}

  @classmethod
  def from_arrays(cls, arrays: dict[str, np.ndarray]) -> 'Part':
    """Returns the part from the arrays that `to_arrays` made."""
    found = {k.removeprefix('measured_'): v for k, v in arrays.items() if k.startswith('measured_')}
    seconds, drawn = (arrays[name].item() for name in ('seconds', 'drawn'))
    measured = measure.Measured.from_arrays(found)
    return cls(arrays['pixels'], arrays['latents'], arrays['index'], measured, seconds, drawn)


def pictures(workdir: storage.epath.Path, name: str) -> storage.epath.Path:
  """Returns the file of a cell's pictures."""
  return workdir / 'evaluation' / 'cells' / f'{name}.npz'


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """The files of a grid's cells in a workdir.

  Pictures are named by the cell, measures also by the extractor, figures also by the reference. A
  cell is complete when pictures and measure exist; figures only save the time to compute them.
  """

  workdir: storage.epath.Path
  extractor: extractors.Extractor
  bank: int

  @property
  def folder(self) -> storage.epath.Path:
    return self.workdir / 'evaluation'

  def measured(self, name: str) -> storage.epath.Path:
    return self.folder / 'measured' / f'{name}-{self._kind}.npz'

  @property
  def _kind(self) -> str:
    return f'{self.extractor.key}-{self.bank}-{measure.FORMAT}'

  def figures(self, name: str, target: str, real: str) -> storage.epath.Path:
    """Returns the file of a cell's figures against the cell `target` and the images `real`.

    `real` is a digest of the real images.
    """
    place = f'{_digest(name)}-{_digest(target)}-{self._kind}-{real}.json'
    return self.folder / 'figures' / place

  def part(self, name: str, process: int) -> storage.epath.Path:
    return self.folder / 'parts' / f'{name}.{process}-of-{jax.process_count()}.npz'

  def clear_parts(self) -> None:
    """Removes the shares of cells that were never merged, because a process was killed."""
    for name in storage.list_dir(self.folder / 'parts'):
      storage.remove(self.folder / 'parts' / name)

  def has(self, name: str) -> bool:
    return storage.exists(pictures(self.workdir, name)) and storage.exists(self.measured(name))

  def kept(self, name: str) -> int:
    """Returns how many pictures of a cell are kept."""
    file = pictures(self.workdir, name)
    return len(read(file).get('pixels', ())) if storage.exists(file) else 0

  def write(self, name: str, part: Part) -> None:
    """Writes a cell: removes old pictures, measures and figures first, and writes pictures last."""
    file = pictures(self.workdir, name)
    if storage.exists(file):
      storage.remove(file)
    for folder, mark in (('measured', f'{name}-'), ('figures', _digest(name))):
      for old in storage.list_dir(self.folder / folder):
        if mark in old:
          storage.remove(self.folder / folder / old)
    storage.write_bytes(self.measured(name), npz(part.measured.to_arrays()))
    arrays = {'pixels': part.pixels, 'seconds_per_image': np.float64(part.seconds / part.drawn)}
    if part.latents.size:
      arrays['latents'] = part.latents
    arrays['versions'] = np.array(protocol.versions_in_words())
    storage.write_bytes(file, npz(arrays, pack=True))

  def write_measure(self, name: str, measured: measure.Measured) -> None:
    """Writes the measure of kept pictures by another extractor."""
    storage.write_bytes(self.measured(name), npz(measured.to_arrays()))

  def read(self, name: str) -> dict[str, np.ndarray]:
    """Reads pixels, seconds_per_image and versions of a cell; CheckpointError if damaged."""
    file = pictures(self.workdir, name)
    stored = read(file)
    for key in ('pixels', 'seconds_per_image'):
      if key not in stored:
        raise errors.CheckpointError(f'{file} lacks {key!r}; remove it and evaluate again')
    return stored

  def read_measure(self, name: str) -> measure.Measured:
    """Reads the measure of a cell; CheckpointError if damaged."""
    file = self.measured(name)
    try:
      return measure.Measured.from_arrays(read(file))
    except KeyError as e:
      raise errors.CheckpointError(f'{file} lacks {e}; remove it and evaluate again') from e


def _digest(name: str) -> str:
  """Returns the last part of a cell's name, which is a digest of the whole cell."""
  return name.rsplit('-', 1)[-1]


def digest(*what: Any) -> str:
  """Returns twelve hex digits of a hash of JSON values."""
  return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def npz(arrays: dict[str, np.ndarray], pack: bool = False) -> bytes:
  """Returns an .npz file; `pack` compresses, which suits pictures but not sums and features."""
  buffer = io.BytesIO()
  (np.savez_compressed if pack else np.savez)(buffer, **arrays)
  return buffer.getvalue()


def read(file: storage.epath.Path) -> dict[str, np.ndarray]:
  """Reads the arrays of an .npz file; CheckpointError if damaged."""
  try:
    with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as stored:
      return {name: stored[name] for name in stored.files}
  except Exception as e:  # zipfile, zlib and numpy raise errors of their own
    raise errors.CheckpointError(
      f'{file} is damaged ({errors.brief(e)}); remove it and evaluate again'
    ) from e
