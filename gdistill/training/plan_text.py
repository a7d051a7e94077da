"""The text of --plan: rounds, updates, parameters, and bytes a device holds."""

import math

import jax
from jax.sharding import Mesh

from gdistill.devices import sharding
from gdistill.recipe import settings as recipes
from gdistill.rounds import plan as plans
from gdistill.training import shapes as stage_shapes
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


def describe(recipe: recipes.Recipe, mesh: Mesh, workdir: storage.epath.Path | None = None) -> str:
  """The plan in words: rounds, updates, images, parameters, bytes, programs. Starts nothing.

  With a workdir it says which of the rounds are finished there.
  """
  from clu import parameter_overview

  shapes = stage_shapes.network_shapes(recipe, recipe.takes_w)
  plan = plans.plan(recipe)
  lines = [parameter_overview.get_parameter_overview(shapes, include_stats=False), '']
  lines.append(f'{"round":24}{"updates":>11}{"lr":>9}{"batch":>7}{"images seen":>15}  learns from')
  for r in plan:
    batch = recipe.settings(r.stage).batch_size
    lines.append(
      f'{r.name:24}{r.steps:11,}{r.lr:9g}{batch:7,}{r.steps * batch:15,}  {r.teacher or "data"}'
    )
  updates = sum(r.steps for r in plan)
  images = sum(r.steps * recipe.settings(r.stage).batch_size for r in plan)
  stages = list(dict.fromkeys(r.stage for r in plan))
  sizes = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  lines += [
    f'{"total":24}{updates:11,}{"":16}{images:15,}',
    '',
    f'mesh: {sizes} = {mesh.size} devices',
    f'{"bytes held per device":24}{"parameters":>16}{"moments, mean":>16}{"teacher":>16}{"all":>16}'
    f'{"images":>8}',
  ]
  for stage in stages:
    held = bytes_per_device(recipe, stage, mesh)
    settings = recipe.settings(stage)
    rows = settings.batch_size // settings.accumulation // mesh.size
    each = ''.join(f'{n:16,}' for n in (*held, sum(held)))
    lines.append(f'{stage:24}{each}{rows:8,}')
  lines.append(
    f'compiled train steps: {len(stages)} ({", ".join(stages)}), each once for its rounds'
  )
  if workdir is not None:
    done = [r.name for r in plan if finished_rounds.is_finished(workdir / r.name)]
    todo = [r.name for r in plan if r.name not in done]
    lines.append(f'finished in {workdir}: {", ".join(done) or "none"}; to do: {len(todo)} rounds')
  return '\n'.join(lines)


def bytes_per_device(recipe: recipes.Recipe, stage: str, mesh: Mesh) -> tuple[int, int, int]:
  """Bytes of parameters, of moments and running mean, and of the teacher, after sharding."""
  _, teacher = stage_shapes.student_and_teacher(recipe, stage)
  teacher = stage_shapes.placed(teacher, sharding.tree_shardings(mesh, teacher))
  state = stage_shapes.state_shapes(recipe, stage, mesh)

  def held(tree):
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)

  return held(state.params), held((state.ema, state.opt)), held(teacher)
