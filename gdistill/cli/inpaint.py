"""gdistill inpaint: paints the masked part of pictures and keeps the rest."""

import collections
import os
from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import command_line
from gdistill.cli import drawing_flags
from gdistill.cli import exit_codes
from gdistill.cli import picture_flags
from gdistill.cli import picture_job
from gdistill.cli import source_pictures

_BLACK = 127  # largest grey value of a mask that counts as black: the picture is kept there


def parser() -> command_line.Parser:
  p = picture_flags.parser(
    'inpaint',
    'Paints pictures where a mask is white and keeps the rest. A network that was trained to '
    'inpaint takes the mask and the known part as inputs. With any other network, the known part '
    'of x_hat is replaced by the picture in every step.',
  )
  p.add_argument(
    '--mask', required=True,
    help='mask of the same size as the picture: white where to paint, black or transparent where '
    'to keep; or a folder with a mask for each picture, under the same name',
  )  # fmt: skip
  p.add_argument(
    '--keep', choices=('exact', 'drawn'), default='exact',
    help='pixels of the known part in the result: exact copies them from the picture (default), '
    'drawn takes them as the network draws them',
  )  # fmt: skip
  drawing_flags.add_negative(p)
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.drawing import editor
  from gdistill.process import progress

  checked = picture_flags.check(args)
  negative = drawing_flags.negative(args, checked.card)
  sources, files = checked.sources, source_pictures.Sources(args.mask, '--mask')
  trained = bool(checked.settings.extra_channels)
  if checked.drawing.num_steps == 1 and not trained:
    progress.say(
      f'warning: {args.folder} was not trained to inpaint, and in a single step it uses almost '
      'nothing of the known part; use a round of more steps, or a round of an inpainting config'
    )
  masks = Masks(sources, files, trained)

  def make(folder, frozen, encoder_folder, batch_size):
    return editor.painter(folder, frozen, batch_size, args.keep == 'exact', negative)

  counts = {'num_steps': checked.drawing.num_steps}
  return picture_job.run(args, checked, make, counts, 'painting', None, files, masks)


class Masks:
  """The mask of each source picture: one mask for all pictures, or one mask file for each name.

  `trained` is True if the network takes the mask as an input, at the resolution of the latents.
  """

  def __init__(
    self, sources: source_pictures.Sources, masks: source_pictures.Sources, trained: bool
  ):
    self._sources, self._masks, self._trained = sources, masks, trained
    from gdistill.process import progress

    for line in masks.notes:
      progress.say(line)
    self._warned, self._of = set(), [0] * len(sources)
    if not os.path.isdir(masks.path):
      return
    places = {stem: k for k, stem in enumerate(masks.stems)}
    lacking = [stem for stem in sources.stems if stem not in places]
    if lacking:
      more = f' and for {len(lacking) - 1} more' if lacking[1:] else ''
      raise errors.DataError(
        f'--mask={masks.path} has no mask for the picture {lacking[0]} of {sources.path}{more}; '
        'add a mask with the same file name'
      )
    twice = [stem for stem, count in collections.Counter(masks.stems).items() if count > 1]
    if twice:
      raise errors.DataError(
        f'--mask={masks.path} has several masks of the name {twice[0]}; remove all but one of them'
      )
    known = set(sources.stems)
    unused = [k for k, stem in enumerate(masks.stems) if stem not in known]
    if unused:
      progress.say(
        f'--mask={masks.path}: {len(unused):,} mask{"s have" if unused[1:] else " has"} no picture '
        f'of the same name in --image={sources.path} and {"are" if unused[1:] else "is"} not used '
        f'(such as {masks.files[unused[0]]})'
      )
    self._of = [places[stem] for stem in sources.stems]

  def __call__(self, i: int, shape: Sequence[int], factor: int):
    """Returns the mask of picture i, [H, W, 1] of 0 and 1, at the size of the network's pictures.

    `factor` is the ratio of the picture's side to the side of the latents. Raises DataError if the
    mask has another size than the picture, has no white part, or has too thin a white part.
    """
    import numpy as np

    from gdistill.process import progress

    k, picture = self._of[i], self._sources.files[i]
    file, found = self._masks.files[k], self._masks.read(k, 1, 'black')
    original = self._sources.read(i, shape[2])
    if found.shape[:2] != original.shape[:2]:
      raise errors.DataError(
        f'--mask={file} is {found.shape[1]} x {found.shape[0]} pixels and {picture} '
        f'{original.shape[1]} x {original.shape[0]}: a mask must have the size of its picture; '
        'resize the mask'
      )
    mask = (source_pictures.fitted(self._masks, k, found, shape) > _BLACK).astype(np.float32)
    if not mask.any():
      raise errors.DataError(f'--mask={file} {_nothing_to_paint(self._masks, k, found, shape)}')
    if self._trained and not mask[::factor, ::factor].any():
      raise errors.DataError(
        f'--mask={file}: the white part is too thin, because the network reads one mask pixel in '
        f'{factor}; make the white part at least {factor} pixels wide'
      )
    if mask.all() and file not in self._warned:
      self._warned.add(file)
      lowest, highest = int(found.min()), int(found.max())
      said = f'{lowest} everywhere' if lowest == highest else f'{lowest} to {highest} everywhere'
      progress.say(
        f'warning: --mask={file} is {said}, and values above {_BLACK} of 255 are painted: nothing '
        'of the picture is kept'
      )
    return mask


def _nothing_to_paint(masks: source_pictures.Sources, k: int, found, shape: Sequence[int]) -> str:
  """Returns why mask k, whose grey values are `found`, paints nothing, and what to do about it."""
  largest, full = int(found.max()), 255
  if largest > _BLACK:
    return (
      f'has values up to {largest} of 255, but its white part is too thin: resized to '
      f'{shape[1]} x {shape[0]}, no value is above {_BLACK}; make the white part wider'
    )
  if deep := masks.largest_of_16_bits(k):
    largest, full = deep, 65_535
  same = ' everywhere' if found.min() == found.max() and full == 255 else ''
  what = f'is {largest}{same}' if same else f'has no value above {largest}'
  return (
    f'{what} of {full:,}, and only values above {full // 2:,} are painted; write {full:,} (white) '
    'where to paint and 0 (black) where to keep'
  )
