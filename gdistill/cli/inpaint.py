"""gdistill inpaint: the masked part of pictures painted, the rest as it is."""

import os
from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import apps
from gdistill.cli import asked
from gdistill.cli import edge
from gdistill.cli import results


def parser() -> edge.Parser:
  p = apps.parser(
    'inpaint',
    'Paints pictures where the mask is white. A network that was trained for it is shown mask and '
    'picture; any other is held to the known part in every step.',
  )
  p.add_argument(
    '--mask', required=True,
    help='a picture of the size of the image, white where to paint, black or transparent where '
    'not; or a folder with one for each, by its name',
  )  # fmt: skip
  p.add_argument(
    '--keep', choices=('exact', 'drawn'), default='exact',
    help='of the known part: its very pixels (default), or as the network draws it',
  )  # fmt: skip
  apps.add_negative(p)
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.drawing import editor
  from gdistill.process import progress

  of = apps.check(args)
  negative, masks = asked.negative(args, of.card), results.Sources(args.mask, '--mask')
  if of.walk.num_steps == 1 and not of.settings.extra_channels:
    progress.say(
      f'warning: {args.folder} was not trained to inpaint, and in one step learns next to nothing '
      'of the known part; take a round of more steps, or of an inpainting config'
    )
  masked = _Masks(of.sources, masks, bool(of.settings.extra_channels))

  def make(folder, frozen, encoder, batch_size):
    return editor.painter(folder, frozen, batch_size, args.keep == 'exact', negative)

  counts = {'num_steps': of.walk.num_steps}
  return apps.run(args, of, make, counts, 'painting', None, masks, masked)


class _Masks:
  """The mask of each picture: by its name from a folder, or one for all."""

  def __init__(self, sources: results.Sources, masks: results.Sources, shown: bool):
    self._sources, self._masks, self._shown = sources, masks, shown
    self._said, self._of = set(), [0] * len(sources)
    if not os.path.isdir(masks.path):
      return
    places = {stem: k for k, stem in enumerate(masks.stems)}
    lacking = [stem for stem in sources.stems if stem not in places]
    if lacking:
      more = f' and {len(lacking) - 1} more' if lacking[1:] else ''
      raise errors.DataError(
        f'--mask={masks.path} has none named {lacking[0]}{more}, as pictures of {sources.path} '
        'are; add it'
      )
    self._of = [places[stem] for stem in sources.stems]

  def __call__(self, i: int, shape: Sequence[int], factor: int):
    """[H, W, 1] of 0 and 1 at working size; DataError where it cannot be the mask of picture i."""
    import numpy as np

    from gdistill.process import progress

    k, picture = self._of[i], self._sources.files[i]
    file, found = self._masks.files[k], self._masks.read(k, 1, 'black')
    original = self._sources.read(i, shape[2])
    if found.shape[:2] != original.shape[:2]:
      raise errors.DataError(
        f'--mask={file} is {found.shape[1]} x {found.shape[0]} pixels and {picture} '
        f'{original.shape[1]} x {original.shape[0]}: a mask must have the size of its picture'
      )
    mask = (results.fitted(self._masks, k, found, shape) > 127).astype(np.float32)
    if not mask.any():
      raise errors.DataError(
        f'--mask={file} is black: nothing is to be painted; make white what is'
      )
    if self._shown and not mask[::factor, ::factor].any():
      raise errors.DataError(
        f'--mask={file} is too thin for a network that sees one pixel in {factor}; make what is '
        f'white {factor} pixels wide'
      )
    if mask.all() and file not in self._said:
      self._said.add(file)
      progress.say(f'warning: --mask={file} is white: nothing of the picture is known')
    return mask
