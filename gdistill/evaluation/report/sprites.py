"""Makes the sprites of the report page: PNGs that each show the first samples of one cell (one
model, sampler, number of steps and w) side by side.
"""

import base64
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from gdistill.evaluation.report import grouping
from gdistill.workdir import storage

ACROSS, DOWN = 10, 4  # images in one row of a sprite, and rows of images in a sprite
MAX_BYTES = 1_200_000  # largest total size of the base64 texts of all sprites on a page
_SHOWN = ('label', 'model', 'sampler', 'num_steps', 'w', 'round', 'network_calls', 'images')
_SHOWN += ('fd', 'fd_teacher', 'rms_teacher', 'inception_score', 'accuracy')


@dataclasses.dataclass(frozen=True)
class Sprites:
  """The cells of a report page; a cell is one model, sampler, number of steps and w, with a sprite:
  a PNG of the first samples.

  A cell is a dict of some fields of a row in metrics.json and of 'sprite', which is the base64 text
  of a PNG, or None if no samples are stored.
  """

  cells: list[grouping.Row]
  down: int  # rows of images in each sprite
  side: int  # side, in pixels, of the largest image before shrinking
  shrink: int  # factor by which the sides of the images were reduced

  @property
  def saved(self) -> bool:
    """Returns whether at least one cell has a sprite."""
    return any(c['sprite'] for c in self.cells)

  @property
  def images(self) -> int:
    """Returns the number of images in each sprite."""
    return ACROSS * self.down


def sprites(workdir: epath.Path, series: grouping.Series) -> Sprites:
  """Makes a sprite (a PNG of samples) for each row of the series, from the samples in the workdir.

  If the sprites exceed MAX_BYTES in total, every sprite gets fewer rows of images, and after that
  smaller images.
  """
  rows = grouping.rows_of(series)
  pictures = [pixels(workdir, r.get('cell')) for r in rows]
  side = max((max(p.shape[1:3]) for p in pictures if p is not None), default=0)
  for down, shrink in [(DOWN, 1), (2, 1), (1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32)]:
    found = [None if p is None else _sprite(p, down, shrink) for p in pictures]
    if sum(len(s) for s in found if s) <= MAX_BYTES:
      break
  cells = [{**{k: r.get(k) for k in _SHOWN}, 'sprite': s} for r, s in zip(rows, found, strict=True)]
  return Sprites(cells, down, side, shrink)


def pixels(workdir: epath.Path, cell: Any) -> np.ndarray | None:
  """Returns the first samples [n, H, W, C] uint8 in the .npz file of the cell named `cell`, or None
  if the file is missing or unusable.
  """
  if not isinstance(cell, str) or not re.fullmatch(r'\w[\w.,=+-]*', cell):
    return None  # a cell name with a slash is refused: it could point outside the folder
  path = workdir / 'evaluation' / 'cells' / f'{cell}.npz'
  try:
    if not storage.exists(path):
      return None
    with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as file:
      found = file['pixels'][: ACROSS * DOWN]
  except Exception:  # all errors: zipfile, zlib and numpy raise various errors on damaged files
    return None
  return found if found.ndim == 4 and found.dtype == np.uint8 and found.size else None


def _sprite(images: np.ndarray, down: int, shrink: int) -> str:
  """Returns the base64 text of a PNG with ACROSS x `down` images, separated by grey lines."""
  images = images[: ACROSS * down, ..., : 3 if images.shape[-1] == 3 else 1]
  shrink = min(shrink, *images.shape[1:3])
  small = [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p).reduce(shrink) for p in images]
  width, height = small[0].size
  gap = max(1, max(width, height) // 16)
  size = ACROSS * (width + gap) + gap, down * (height + gap) + gap
  sheet = Image.new(small[0].mode, size, 'grey')
  for i, image in enumerate(small):
    row, column = divmod(i, ACROSS)
    sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
  file = io.BytesIO()
  sheet.save(file, 'png', optimize=True)
  return base64.b64encode(file.getvalue()).decode()


def index_of(cells: Sequence[grouping.Row], row: grouping.Row | None) -> int | None:
  """Returns the index in `cells` of the cell that was made from `row`, or None if `row` is None."""
  if row is None:
    return None
  keys = ('label', 'num_steps', 'w')
  return next(i for i, c in enumerate(cells) if all(c[k] == row[k] for k in keys))


def of_rounds(
  rounds: Sequence[dict[str, Any]], cells: Sequence[grouping.Row]
) -> list[dict[str, Any]]:
  """Returns [{name, cells: [[w, index]]}]: for each round, the index in `cells` of the cell whose
  sprite is shown at each w.

  If a round has several cells at one w, a cell sampled by DDIM is preferred; then a cell with the
  number of steps in card.json (the record of a finished round); then the cell with the most steps.
  """
  found = []
  for entry in rounds:
    own = entry['card'].get('num_steps')
    order = sorted(
      (c['sampler'] == 'ddim', c['num_steps'] == own, c['num_steps'], i)
      for i, c in enumerate(cells)
      if c['round'] == entry['name'] and c['sprite']
    )
    # `order` is sorted from the worst to the best cell, so the dict holds the best cell of each w
    by_w = {cells[i]['w']: i for *_, i in order}
    found.append({'name': entry['name'], 'cells': sorted(by_w.items())})
  return found
