"""The plan: a recipe as a list of rounds, each a folder that the next one reads."""

import dataclasses
import math

from gdistill import recipe as recipes


@dataclasses.dataclass(frozen=True)
class Round:
  """One training run: `stage`, for `steps` updates, into folder `name`."""

  index: int
  name: str
  stage: str
  num_steps: int  # sampling steps N its network is trained for; 0: any (teacher, stage one)
  steps: int
  lr: float
  teacher: str  # the round it learns from and starts from; '' when there is none


def plan(recipe: recipes.Recipe) -> tuple[Round, ...]:
  """Teacher, stage one, then N = start/2, start/4, ..., end; pure."""
  out: list[Round] = []

  def add(stage, num_steps, steps, lr):
    suffix = f'_{num_steps}' if num_steps else ''
    teacher = out[-1].name if out else recipe.initial
    name = f'{len(out):02d}_{stage}{suffix}'
    out.append(Round(len(out), name, stage, num_steps, steps, lr, teacher))

  for stage in recipe.stages:
    settings = getattr(recipe, stage)
    if stage != 'progressive':
      add(stage, 0, settings.steps, settings.lr)
      continue
    halvings = int(math.log2(settings.start_steps // settings.end_steps))
    for i in range(1, halvings + 1):
      n = settings.start_steps // 2**i
      last = n <= 2
      steps, lr = (settings.last_steps, settings.last_lr) if last else (settings.steps, settings.lr)
      add(stage, n, steps, lr)
  return tuple(out)
