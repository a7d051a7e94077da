"""Compiles the program that draws pictures for chips that are not here."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.devices import compiled
from gdistill.devices import mesh as meshes
from gdistill.devices import topology as topologies
from gdistill.drawing import sampling
from gdistill.frozen import networks as frozen_networks
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.workdir import storage


def measure(
  recipe: recipes.Recipe,
  chips: topologies.Topology,
  devices: Any,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Returns `compiled.figures` of the program with which a student draws, from tokens to pixels.

  The program is that of one host of `chips`, for a batch of `evaluation.batch_size` pictures. It
  takes any number of steps; its FLOPs, and the bytes that it moves, are those of one step with the
  text encoder and the decoder.
  """
  frozen = frozen_networks.of_settings(recipe.latents)
  batch = recipe.evaluation.batch_size
  net = networks.build(recipe.model, recipe.takes_w, noise_settings=recipe.noise)
  params = networks.initial_shapes(net, recipe.model)
  card = {'guided': recipe.naive, 'takes_w': recipe.takes_w, 'sampler': recipe.progressive.sampler}
  folder = folders.Folder(storage.path('.'), card, recipe.model, recipe.noise, net, params)
  own = [d for d in devices if d.process_index == 0]
  whole, rows = meshes.over_local_devices(batch, own)

  def placed(tree, sharding):
    return jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=sharding), tree
    )

  given = {'seeds': np.zeros(batch, np.uint32), 'labels': np.zeros(batch, np.int32)}
  given['w'] = np.zeros(batch, np.float32)
  if frozen.text:
    given['prompts'] = tuple(np.repeat(a, batch, 0) for a in frozen.tokens(['']))
  draw = jax.jit(
    meshes.by_rows(
      sampling.drawing(folder, frozen, sampling.own_sampler(card)), rows.mesh, sampling.SPLIT
    ),
    in_shardings=(whole, rows, whole, whole),
    out_shardings=rows,
  )
  return compiled.figures(
    lambda: draw.trace(
      placed(sampling.arguments(folder, frozen), whole),
      placed(given, rows),
      None,
      jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
    ),
    chips,
    dict(whole.mesh.shape),
    say,
  )
