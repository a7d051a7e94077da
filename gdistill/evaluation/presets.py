"""The measurement protocols of published tables, by name, with the published metric values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gdistill import errors


@dataclasses.dataclass(frozen=True)
class Preset:
  """The protocol of one published table; `published` holds only values printed in the paper."""

  name: str
  table: str
  images: int
  size: int  # side, in pixels, of the square samples and reference pictures when measured
  reference: str  # what the reference pictures are and where to get them, in words
  resize: str  # how the reference pictures are resized to `size`, in words
  metrics: tuple[str, ...]
  ws: tuple[float, ...]
  num_steps: tuple[int, ...]
  prompts: bool = False
  extractor: str = 'inception'
  clip: str = ''
  reference_images: int = 0  # number of reference pictures; 0 if not stated in the paper
  published: tuple[dict, ...] = ()


_PIXELS = dict(
  images=50_000, resize='none', metrics=('fd', 'inception_score'), ws=(0.0, 0.3, 1.0, 2.0, 4.0)
)
_GD = 'Meng et al. 2210.03142'
_LCM = 'Luo et al. 2310.04378, of their own reimplementation of guided distillation'
_ALL = (
  Preset(
    'cifar10', f'{_GD}, CIFAR-10: FID and IS against the 50,000 training images', size=32,
    reference='the CIFAR-10 training images; gdistill statistics --config=configs/cifar10.py',
    num_steps=(1, 2, 4, 8), reference_images=50_000, **_PIXELS,
  ),
  Preset(
    'imagenet64', f'{_GD}, ImageNet 64: FID and IS against the training images', size=64,
    reference='the 1,281,167 ImageNet training images; gdistill prepare, then gdistill statistics '
    '--config=configs/imagenet64.py',
    num_steps=(1, 2, 4, 8, 16), reference_images=1_281_167,
    published=(
      {'num_steps': 1, 'w': 1.0, 'fd': 7.54, 'source': _GD},
      {'num_steps': 8, 'w': 0.3, 'fd': 2.05, 'source': _GD},
    ),
    **{**_PIXELS, 'resize': 'centre square crop, by area to 64'},
  ),
  Preset(
    'imagenet256', f'{_GD}, ImageNet 256, latent: FID and IS', images=50_000, size=256,
    reference="the ImageNet training images at 256, or ADM's VIRTUAL_imagenet256_labeled.npz",
    resize='centre square crop, by area to 256', metrics=('fd', 'sfid', 'inception_score'),
    ws=(0.0, 1.0, 2.0, 4.0, 8.0, 14.0), num_steps=(1, 2, 4, 8, 16),
  ),
  Preset(
    'coco5k', f'{_GD}, text-to-image on COCO 2017: FID and CLIP score', images=5_000, size=256,
    reference='COCO val2017, 5,000 pictures and the first caption of each; cocodataset',
    resize='shorter side to 256, centre square crop', metrics=('fd', 'clip_score'),
    ws=(2.0, 4.0, 7.0, 10.0, 14.0), num_steps=(1, 2, 4, 8), prompts=True, clip='clip_l14',
    reference_images=5_000,
    published=(
      {'num_steps': 8, 'fd': 26.9, 'clip_score': 0.30, 'source': _GD},
    ),
  ),
  Preset(
    'coco30k', 'text-to-image on COCO 2014: FID over 30,000 captions, and CLIP score',
    images=30_000, size=256,
    reference='COCO val2014, 30,000 captions drawn once and the pictures they belong to',
    resize='shorter side to 256, centre square crop', metrics=('fd', 'clip_score'),
    ws=(2.0, 4.0, 7.0, 10.0, 14.0), num_steps=(1, 2, 4, 8), prompts=True, clip='clip_l14',
    reference_images=30_000,
  ),
  *(
    Preset(
      name, f'LAION-Aesthetics {score} at {size} px: FID and CLIP score', images=30_000, size=size,
      reference=f'held-out pictures of LAION-Aesthetics {score}, with captions',
      resize=f'shorter side to {size}, centre square crop', metrics=('fd', 'clip_score'),
      ws=(7.0,), num_steps=(1, 2, 4, 8), prompts=True, clip='clip_l14',
      published=tuple({'num_steps': n, 'fd': fd, 'source': _LCM} for n, fd in published),
    )
    for name, score, size, published in (
      ('laion_aesthetic', '6+', 512, ((1, 108.2), (2, 33.3), (4, 15.1), (8, 13.9))),
      ('laion_aesthetic_768', '6.5+', 768, ((8, 14.12),)),
    )
  ),
)  # fmt: skip
ALL = {p.name: p for p in _ALL}


def get(name: str) -> Preset:
  """Returns the preset `name`; raises ConfigError, listing all names, for an unknown name."""
  if name not in ALL:
    raise errors.ConfigError(f'--preset={name!r} must be one of {", ".join(ALL)}')
  return ALL[name]


def departures(preset: Preset, row: Mapping[str, Any], brought: int, clip: str = '') -> list[str]:
  """Returns, in words, each way in which a row of metrics departs from the preset's protocol.

  `brought` is the number of pictures that were resized because of a size other than `preset.size`.
  `clip` is the name of the CLIP network that scored the captions, or '' without a CLIP score.
  """
  size, found = preset.size, []
  if row['images'] != preset.images:
    found.append(f'{row["images"]:,} pictures instead of {preset.images:,}')
  if brought:
    found.append(f'{brought:,} pictures of another size resized to {size} x {size}')
  if row['extractor'] != preset.extractor:
    found.append(f'{row["extractor"]} instead of {preset.extractor}')
  if 'half-pixel' in row['resize']:
    found.append("pytorch-fid's resize instead of TensorFlow 1's")
  if clip and clip != preset.clip:
    found.append(f'{clip} instead of {preset.clip}' if preset.clip else f'{clip} as well')
  if preset.resize == 'none' and row.get('reference_resize', 'none') != 'none':
    found.append(f'a reference resized: {row["reference_resize"]}')
  reference = row['reference_images']
  if reference is None:
    found.append('a reference of which only mu and sigma are known')
  elif preset.reference_images and reference != preset.reference_images:
    found.append(f'a reference of {reference:,} pictures instead of {preset.reference_images:,}')
  return found
