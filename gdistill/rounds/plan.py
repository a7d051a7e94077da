"""Lists the rounds of a run in order; a round's teacher is the network of an earlier round."""

import dataclasses
import math
from collections.abc import Callable

from gdistill.recipe import settings as recipes


@dataclasses.dataclass(frozen=True)
class Round:
  """One round of a run: trains with the objective of `stage`, and writes into the folder `name`."""

  index: int
  name: str
  stage: str
  num_steps: int  # sampling steps N that the student is trained for; 0 (teacher, stage one): any N
  steps: int
  lr: float
  teacher: str  # name or folder of the round with teacher and initial parameters; '' if none
  outside: bool  # whether `teacher` is a folder of another run, not a round of this run


def plan(
  stages: tuple[str, ...],
  encoder: bool,
  initial: str,
  settings: Callable[[str], recipes.Training],
) -> tuple[Round, ...]:
  """Returns the rounds: teacher, stage one, then one for each N = start/2, start/4, ..., end steps.

  If `encoder` is True, rounds that distil an encoder for N = start/2, ..., end sampling steps come
  last. The first round of the encoder starts from the student of stage one, like the first round of
  the decoder (from noise to data). `initial` is the folder of the first round's teacher, or ''.
  `settings(stage)` returns the settings of a stage's rounds.
  """
  out: list[Round] = []

  def add(stage, num_steps, steps, lr, before):
    suffix = f'_{num_steps}' if num_steps else ''
    name, teacher = f'{len(out):02d}_{stage}{suffix}', before.name if before else initial
    outside = bool(teacher) and before is None
    out.append(Round(len(out), name, stage, num_steps, steps, lr, teacher, outside))
    return out[-1]

  def ladder(stage, before):
    p = settings(stage)
    halvings = int(math.log2(p.start_steps // p.end_steps))
    for n in (p.start_steps // 2**i for i in range(1, halvings + 1)):
      steps, lr = (p.last_steps, p.last_lr) if n <= 2 else (p.steps, p.lr)
      before = add(stage, n, steps, lr, before)

  before = None
  for stage in (s for s in stages if s != 'progressive'):
    before = add(stage, 0, settings(stage).steps, settings(stage).lr, before)
  if 'progressive' in stages:
    ladder('progressive', before)
  if encoder:
    ladder('encoder', before)
  return tuple(out)
