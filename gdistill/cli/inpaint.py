"""gdistill inpaint: the masked part of pictures painted, the rest as it is."""

import os
from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import apps
from gdistill.cli import edge
from gdistill.cli import sample


def parser() -> edge.Parser:
  p = apps.parser(
    'inpaint',
    'Paints pictures where the mask is white. A network that was trained for it is shown mask and '
    'picture; any other is held to the known part in every step.',
  )
  p.add_argument(
    '--mask', required=True,
    help='a picture of the size of the image, white where to paint; or a folder with one for each, '
    'by its name',
  )  # fmt: skip
  p.add_argument(
    '--keep', choices=('exact', 'drawn'), default='exact',
    help='of the known part: its very pixels (default), or as the network draws it',
  )  # fmt: skip
  p.add_argument('--negative_prompt', help='what a guided teacher points away from')
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import numpy as np

  from gdistill import editing
  from gdistill import progress

  asked = apps.opened(args)
  sources = apps.Sources(args.image, asked)
  masks = apps.Sources(args.mask, asked, '--mask')
  negative = sample.negative(args, asked.folder.card)
  if asked.num_steps == 1 and not asked.folder.settings.extra_channels:
    progress.say(
      f'warning: {asked.folder.path} was not trained to inpaint, and in one step learns next to '
      'nothing of the known part; take a round of more steps, or of an inpainting config'
    )
  by_name = dict(masks.named()) if os.path.isdir(args.mask) else {}
  without = [file for name, file in sources.named() if by_name and name not in by_name]
  if without:
    raise errors.DataError(
      f'--mask={args.mask} has none for {without[0]}'
      + (f' and {len(without) - 1} more' if without[1:] else '')
      + '; add a mask of its name'
    )

  def mask_of(picture):
    file = by_name[picture.name] if by_name else args.mask
    found = masks.read(file, channels=1)
    if found.shape[:2] != picture.original[:2]:
      raise errors.DataError(
        f'--mask={file} is {found.shape[1]} x {found.shape[0]} pixels and {picture.file} '
        f'{picture.original[1]} x {picture.original[0]}: a mask must have the size of its picture'
      )
    mask = (masks.fitted(found) > 127).astype(np.float32)
    if not mask.any():
      raise errors.DataError(
        f'--mask={file} is black: nothing is to be painted; make white what is'
      )
    if mask.all():
      progress.say(f'warning: --mask={file} is white: nothing of {picture.file} is known')
    return mask

  def make(size):
    return editing.painter(asked.folder, asked.frozen, size, args.keep == 'exact', negative)

  def rows_of(pictures):
    return {'mask': np.stack([mask_of(p) for p in pictures])}

  def shown(rows):  # what the network is shown: grey where it paints
    grey = np.full_like(rows['pixels'], 128)
    return [np.where(rows['mask'] > 0, grey, rows['pixels'])]

  counts = {'num_steps': asked.num_steps}
  return apps.run(args, asked, sources, make, rows_of, counts, 'painting', shown)
