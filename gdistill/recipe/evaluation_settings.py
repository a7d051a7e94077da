"""The settings of the evaluation grid: the section `evaluation` of a config."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The grid of strengths w and sampling steps N: a quick grid after training, and a full grid."""

  # Guidance strengths w of the grid; a student is sampled only at w from w_min to w_max.
  ws: tuple[float, ...]
  # Numbers of sampling steps N of the grid; students are sampled only at N that have a round.
  num_steps: tuple[int, ...]
  # Number of pictures for each model, w and N of the quick grid, sampled after training.
  quick_images: int
  # Number of DDIM steps in which the guided teacher samples the reference of the quick grid.
  quick_reference_steps: int
  # Number of pictures for each model, w and N of the full grid (`gdistill evaluate --grid=full`).
  full_images: int
  # Number of DDIM steps in which the guided teacher samples the reference of the full grid.
  full_reference_steps: int
  # Number of pictures that each process samples at a time; more need more memory.
  batch_size: int
  # Largest number of training pictures, and of held-out pictures, that metrics such as FD use.
  real_images: int = 10_000
  # Network whose features metrics such as FD compare: a small classifier that is trained on the
  # run's own training pictures, or a published network.
  extractor: Literal['classifier', 'inception', 'lite0', 'clip_b32', 'clip_l14'] = 'classifier'
  # Weights file of a published `extractor`; '' means the path that `gdistill convert` writes to.
  weights: str = ''
  # Number of pictures stored for each model, w and N, for the report and for other extractors.
  keep_images: int = 2_000
  # Number of pictures for each model, w and N whose features are stored, because precision, recall
  # and KID need features; more take more disk space.
  bank: int = 10_000
