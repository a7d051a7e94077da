"""A stage's state as shapes with shardings, and its train step compiled from them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gdistill.devices import sharding
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.training import losses as stage_losses
from gdistill.training import step as train_step
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import state as states


def compile_stage(
  recipe: recipes.Recipe, stage: str, mesh: Mesh, examples: Any, workdir: Any
) -> Callable:
  """The one train step of a stage, ahead of time and from shapes alone."""
  settings = recipe.settings(stage)
  cpu = jax.default_backend() == 'cpu'
  substeps = 1 if cpu else recipe.train.substeps

  _, teacher = student_and_teacher(recipe, stage)
  rows = (substeps, settings.batch_size)
  batch = {
    name: jax.ShapeDtypeStruct((*rows, *shape), dtype)
    for name, (shape, dtype) in {**examples.fields, 'id': ((), np.int32)}.items()
  }
  given = jax.eval_shape(lambda: train_step.numbers(1, 1.0, 1, jax.random.key(0)))
  step = train_step.compile_step(
    train_step.make_step(stage_losses.loss_of(recipe, stage), settings, cpu, mesh),
    state_shapes(recipe, stage, mesh),
    placed(teacher, sharding.tree_shardings(mesh, teacher)),
    placed(batch, jax.tree.map(lambda _: sharding.batches_sharding(mesh), batch)),
    placed(given, jax.tree.map(lambda _: sharding.replicated(mesh), given)),
  )
  record(workdir, 'compiled', stage=stage)
  return step


def state_shapes(recipe: recipes.Recipe, stage: str, mesh: Mesh) -> states.TrainState:
  """A stage's state as shapes with shardings."""
  student, _ = student_and_teacher(recipe, stage)
  state = jax.eval_shape(state_maker(recipe.settings(stage)), student)
  return placed(state, train_step.state_shardings(mesh, state))


def placed(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
  )


def student_and_teacher(recipe: recipes.Recipe, stage: str) -> tuple[Any, Any]:
  """Shapes of a stage's own parameters and of its teacher's; a teacher has none."""
  student = network_shapes(recipe, takes_w=recipe.takes_w and stage != 'teacher')
  if stage == 'teacher':
    return student, None
  teacher = network_shapes(recipe, takes_w=recipe.takes_w and stage in ('progressive', 'encoder'))
  if stage == 'guidance' and recipe.stages[0] == 'guidance' and _has_null_network(recipe.initial):
    teacher = networks.Pair(teacher, teacher)
  return student, jax.eval_shape(functools.partial(networks.as_teacher, recipe.model), teacher)


def _has_null_network(folder: str) -> bool:
  """Of a finished round; a plan may name one that is not there yet."""
  there = finished_rounds.is_finished(folder)
  return there and finished_rounds.read_card(folder).get('null') == 'network'


def state_maker(settings: recipes.Training) -> Callable:
  return functools.partial(
    states.create, tx=train_step.optimizer(settings), with_ema=settings.ema > 0
  )


def network_shapes(recipe: recipes.Recipe, takes_w: bool) -> Any:
  return networks.initial_shapes(networks.of_recipe(recipe, takes_w), recipe.model)


def record(workdir, event, **fields) -> None:
  if jax.process_index() == 0:
    ledger.record(workdir, event, **fields)
