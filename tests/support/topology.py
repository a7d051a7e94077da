"""Trains without evaluation: python topology.py OUT CONFIG WORKDIR [coordinator processes id].

Leaves of any size are split over the mesh. OUT/noise.npy gets the noise that the devices draw.
"""

import pathlib
import sys

import numpy as np

from gdistill.cli import config_file
from gdistill.devices import mesh as meshes
from gdistill.devices import processes
from gdistill.devices import sharding
from gdistill.process import interrupt
from gdistill.process import timing
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import run as training_run


def noise(recipe: recipes.Recipe) -> np.ndarray:
  """Returns the noise and w of 16 examples at step 3, drawn on the devices that hold their rows."""
  import jax

  from gdistill.stages import draw

  mesh = meshes.make_mesh(recipe.mesh.data, recipe.mesh.fsdp, recipe.mesh.slices)
  ids = sharding.put_batches(mesh, 16, sharding.local_rows(mesh, 16)[None].astype(np.int32))
  key = jax.random.fold_in(jax.random.key(5), 3)

  def drawn(ids):
    like = jax.numpy.zeros((16, 8, 8, 3))
    keys, ws = draw.example_keys(key, ids[0], 2)
    return draw.normal_like(keys, like), draw.uniform(ws, 0.0, 4.0)

  found = jax.jit(drawn, out_shardings=sharding.replicated(mesh))(ids)
  return np.concatenate([np.asarray(a).ravel() for a in found])


def main(out: str, config: str, workdir: str, *join: str) -> None:
  sharding._SMALL = 0
  recipe = reading.from_config(config_file.load(config, []))
  meshes.make_cpu_devices(recipe.mesh.cpu_devices)
  if join:
    processes.start(join[0], int(join[1]), int(join[2]))
  run = assemble.Run(recipe, workdir)
  run_checks.everything(run)
  training_run.train(run, interrupt.Interrupt(), timing.Seconds())
  np.save(pathlib.Path(out) / 'noise.npy', noise(recipe))


if __name__ == '__main__':
  main(*sys.argv[1:])
