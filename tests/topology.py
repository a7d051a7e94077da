"""python tests/topology.py OUT [flags of a run]: a run that splits leaves of any size.

The noise that its devices draw is left in OUT/noise.npy.
"""

import pathlib
import sys

import numpy as np

from gdistill import parallel
from gdistill.cli import edge
from gdistill.cli import train


def noise(config: dict) -> np.ndarray:
  """What 16 examples of step 3 draw, computed where the mesh has their rows."""
  import jax

  from gdistill.stages import draw

  sizes = config['mesh']
  mesh = parallel.make_mesh(sizes['data'], sizes['fsdp'], sizes.get('slices', 1))
  ids = parallel.put_batches(mesh, 16, parallel.local_rows(mesh, 16)[None].astype(np.int32))
  key = jax.random.fold_in(jax.random.key(5), 3)

  def drawn(ids):
    like = jax.numpy.zeros((16, 8, 8, 3))
    keys, ws = draw.example_keys(key, ids[0], 2)
    return draw.normal_like(keys, like), draw.uniform(ws, 0.0, 4.0)

  found = jax.jit(drawn, out_shardings=parallel.replicated(mesh))(ids)
  return np.concatenate([np.asarray(a).ravel() for a in found])


def main(argv: list[str]) -> int:
  parallel._SMALL = 0
  out = pathlib.Path(argv[0])
  code = train.main(argv[1:])
  given = next(a.partition('=')[2] for a in argv if a.startswith('--config='))
  np.save(out / 'noise.npy', noise(edge.load_config(given, [])))
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
