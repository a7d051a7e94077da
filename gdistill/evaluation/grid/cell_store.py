"""The files of each cell of the grid in the workdir: pictures, measurements and metrics."""

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
  """The pictures that one process sampled for a cell (one model, sampler, N, w) of the grid.

  Only the first pictures of the cell are stored as pixels; `measured` covers all sampled pictures.
  `latents` holds the latents that the stored pictures were decoded from; in pixel space `latents`
  has the shape [k, 0].
  """

  pixels: np.ndarray  # [k, H, W, C] uint8 stored pictures
  latents: np.ndarray  # [k, h, w, c] float16 latents of the stored pictures
  index: np.ndarray  # [k] places of the stored pictures within the cell
  measured: measure.Measured  # measurements of all pictures that the process sampled
  seconds: float  # seconds that the process spent on sampling
  drawn: int  # number of pictures that the process sampled

  def merge(self, other: 'Part') -> 'Part':
    """Returns the union of two parts of a cell; the union's `seconds` is the larger value."""
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
    """Returns pixels, latents, measurements and times as {name: array}, for an .npz file."""
    arrays = {f'measured_{k}': v for k, v in self.measured.to_arrays().items()}
    arrays |= {'pixels': self.pixels, 'latents': self.latents, 'index': self.index}
    return arrays | {'seconds': np.float64(self.seconds), 'drawn': np.int64(self.drawn)}

  @classmethod
  def from_arrays(cls, arrays: dict[str, np.ndarray]) -> 'Part':
    """Returns a `Part` from the arrays that `Part.to_arrays` returned."""
    found = {k.removeprefix('measured_'): v for k, v in arrays.items() if k.startswith('measured_')}
    seconds, drawn = (arrays[name].item() for name in ('seconds', 'drawn'))
    measured = measure.Measured.from_arrays(found)
    return cls(arrays['pixels'], arrays['latents'], arrays['index'], measured, seconds, drawn)


def pictures(workdir: storage.epath.Path, name: str) -> storage.epath.Path:
  """Returns the path of the file with the stored pictures of the cell called `name`."""
  return workdir / 'evaluation' / 'cells' / f'{name}.npz'


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """The files in a workdir that belong to the cells of a grid (one model, sampler, N, w each).

  - A file of pictures is named by the cell.
  - A file of measurements is named by the cell and the feature extractor.
  - A file of metrics is named by the cell, the extractor, the reference cell and the real images.
  A cell is complete when the files of pictures and of measurements exist. If the file of metrics is
  missing, the metrics are computed again from the measurements.
  """

  workdir: storage.epath.Path
  extractor: extractors.Extractor
  bank: int  # largest number of pictures of a cell whose features are stored

  @property
  def folder(self) -> storage.epath.Path:
    return self.workdir / 'evaluation'

  def measured(self, name: str) -> storage.epath.Path:
    return self.folder / 'measured' / f'{name}-{self._kind}.npz'

  @property
  def _kind(self) -> str:
    return f'{self.extractor.key}-{self.bank}-{measure.FORMAT}'

  def figures(self, name: str, target: str, real: str) -> storage.epath.Path:
    """Returns the path of the JSON file with a cell's metrics.

    The metrics compare the cell `name` with the teacher's cell `target` and with real images.
    `real` is a digest that identifies the real images and how these images were measured.
    """
    place = f'{_digest(name)}-{_digest(target)}-{self._kind}-{real}.json'
    return self.folder / 'figures' / place

  def part(self, name: str, process: int) -> storage.epath.Path:
    return self.folder / 'parts' / f'{name}.{process}-of-{jax.process_count()}.npz'

  def clear_parts(self) -> None:
    """Removes .npz files of processes that were killed before the merge of all processes' files."""
    for name in storage.list_dir(self.folder / 'parts'):
      storage.remove(self.folder / 'parts' / name)

  def has(self, name: str) -> bool:
    return storage.exists(pictures(self.workdir, name)) and storage.exists(self.measured(name))

  def kept(self, name: str) -> int:
    """Returns how many pictures of the cell called `name` are stored in the workdir."""
    file = pictures(self.workdir, name)
    return len(read(file).get('pixels', ())) if storage.exists(file) else 0

  def write(self, name: str, part: Part) -> None:
    """Replaces the files of the cell `name` by files with the pictures and measurements of `part`.

    Old pictures, measurements and metrics of the cell are removed first. The file of pictures is
    written last, so that a cell with pictures has measurements even if the process is killed.
    """
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
    """Writes the measurements of the cell `name`, whose pictures are already stored."""
    storage.write_bytes(self.measured(name), npz(measured.to_arrays()))

  def read(self, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays in a cell's file of pictures; CheckpointError if the file is damaged.

    The names of the arrays are 'pixels', 'seconds_per_image', 'versions' and, in latent space,
    'latents'.
    """
    file = pictures(self.workdir, name)
    stored = read(file)
    for key in ('pixels', 'seconds_per_image'):
      if key not in stored:
        raise errors.CheckpointError(
          f'{file} has no array {key!r}; delete the file and repeat the command'
        )
    return stored

  def read_measure(self, name: str) -> measure.Measured:
    """Returns the measurements of a cell; raises CheckpointError if the file is damaged."""
    file = self.measured(name)
    try:
      return measure.Measured.from_arrays(read(file))
    except KeyError as e:
      raise errors.CheckpointError(
        f'{file} has no array {e}; delete the file and repeat the command'
      ) from e


def _digest(name: str) -> str:
  """Returns the digest that ends a cell's name; cells with equal digests have equal pictures."""
  return name.rsplit('-', 1)[-1]


def digest(*what: Any) -> str:
  """Returns twelve hex digits of a hash of the values `what`, which JSON can represent."""
  return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def npz(arrays: dict[str, np.ndarray], pack: bool = False) -> bytes:
  """Returns the bytes of an .npz file with the arrays.

  `pack` compresses the file, which saves much space for pictures but little for features.
  """
  buffer = io.BytesIO()
  (np.savez_compressed if pack else np.savez)(buffer, **arrays)
  return buffer.getvalue()


def read(file: storage.epath.Path) -> dict[str, np.ndarray]:
  """Returns the arrays in an .npz file; raises CheckpointError if the file is damaged."""
  try:
    with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as stored:
      return {name: stored[name] for name in stored.files}
  except Exception as e:  # a damaged file makes zipfile, zlib or numpy raise different errors
    raise errors.CheckpointError(
      f'{file} is damaged ({errors.brief(e)}); delete the file and repeat the command'
    ) from e
