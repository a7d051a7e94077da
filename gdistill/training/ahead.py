"""Compiles a stage's train step for chips that are not here."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gdistill.data import latents
from gdistill.devices import compiled
from gdistill.devices import topology as topologies
from gdistill.training import assemble
from gdistill.training import shapes as stage_shapes


def measure(
  run: assemble.Run,
  stage: str,
  chips: topologies.Topology,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Returns `compiled.figures` of a stage's train step, and 'state', its number of arrays.

  `run` has the devices of `chips`. One call of the compiled step makes one update: the program
  of a run repeats the same update `train.substeps` times in a loop.
  """
  setup, mesh = run.setups[stage], run.mesh
  found = compiled.figures(
    lambda: stage_shapes.trace_stage(setup, mesh, fields(run), 1),
    chips,
    dict(mesh.shape),
    say,
  )
  return {**found, 'state': len(jax.tree.leaves(stage_shapes.state_shapes(setup, mesh)))}


def fields(run: assemble.Run) -> stage_shapes.Fields:
  """Returns the arrays of a training example, {name: (shape, dtype)}, without reading the data.

  Latents are taken to have standard deviations, as those of a KL autoencoder do.
  """
  shape, model = run.input_shape, run.setups[run.plan[0].stage].model
  if not run.latents.autoencoder:
    return {'pixels': (shape, np.uint8), 'label': ((), np.int32)}
  found = {'latents': ((2, 2, *shape), latents.DTYPE), 'label': ((), np.int32)}
  if run.inpainting:
    found['masked'] = latents.masked_shape(run.latents.masks, shape), latents.DTYPE
  if model.context == 'text':
    found['text'] = (model.context_length, model.context_dim), latents.DTYPE
    found['text_mask'] = (model.context_length,), np.bool_
  return found
