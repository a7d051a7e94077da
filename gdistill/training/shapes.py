"""Compiles the train step of a stage from the shapes and shardings of state and batches."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gdistill.devices import mesh as meshes
from gdistill.devices import sharding
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.training import losses as stage_losses
from gdistill.training import stage_setup
from gdistill.training import step as train_step
from gdistill.workdir import state as states

# {name of each array of an example: (shape, dtype)}
Fields = Mapping[str, tuple[tuple[int, ...], Any]]


def compile_stage(setup: stage_setup.StageSetup, mesh: Mesh, fields: Fields) -> Callable:
  """Returns the compiled train step of a stage, compiled ahead of time from shapes alone."""
  return trace_stage(setup, mesh, fields, setup.updates_per_call(mesh)).lower().compile()


def trace_stage(
  setup: stage_setup.StageSetup, mesh: Mesh, fields: Fields, updates: int
) -> jax.stages.Traced:
  """Returns the traced train step of a stage, which makes `updates` updates a call.

  The devices of the mesh may be chips that are not here.
  """
  settings, teacher = setup.settings, teacher_shapes(setup)
  rows = (updates, settings.batch_size)
  batch = {
    name: jax.ShapeDtypeStruct((*rows, *shape), dtype)
    for name, (shape, dtype) in {**fields, 'id': ((), np.int32)}.items()
  }
  given = jax.eval_shape(lambda: train_step.numbers(1, 1.0, 1, jax.random.key(0)))
  return train_step.trace_step(
    train_step.make_step(stage_losses.loss_of(setup), settings, meshes.is_cpu(mesh), mesh),
    state_shapes(setup, mesh),
    _placed(teacher, sharding.tree_shardings(mesh, teacher)),
    _placed(batch, jax.tree.map(lambda _: sharding.batches_sharding(mesh), batch)),
    _placed(given, jax.tree.map(lambda _: sharding.replicated(mesh), given)),
  )


def state_shapes(setup: stage_setup.StageSetup, mesh: Mesh) -> states.TrainState:
  """Returns the shapes and shardings of a stage's train state."""
  state = jax.eval_shape(state_maker(setup.settings), setup.student_shapes)
  return _placed(state, train_step.state_shardings(mesh, state))


def teacher_shapes(setup: stage_setup.StageSetup) -> Any:
  """Returns the shapes of the teacher's parameters; None for the stage that trains a teacher."""
  if setup.stage == 'teacher':
    return None
  teacher = networks.initial_shapes(setup.teacher_net, setup.model)
  if setup.null_network:
    teacher = networks.Pair(teacher, teacher)
  return jax.eval_shape(functools.partial(networks.as_teacher, setup.model), teacher)


def state_maker(settings: recipes.Training) -> Callable[[Any], states.TrainState]:
  """Returns the function that makes the first state of a round from the initial parameters."""
  return functools.partial(
    states.create, tx=train_step.optimizer(settings), with_ema=settings.ema > 0
  )


def bytes_per_device(setup: stage_setup.StageSetup, mesh: Mesh) -> tuple[int, int, int]:
  """Returns a device's bytes of (parameters, optimiser moments and EMA, teacher's parameters)."""
  teacher = teacher_shapes(setup)
  teacher = _placed(teacher, sharding.tree_shardings(mesh, teacher))
  state = state_shapes(setup, mesh)

  def held(tree):
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)

  return held(state.params), held((state.ema, state.opt)), held(teacher)


def _placed(tree: Any, shardings: Any) -> Any:
  """Returns the tree of shapes with shardings added; both trees have the same structure."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
  )
