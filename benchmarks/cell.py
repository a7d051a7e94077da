"""P18: what a cell of the grid costs beyond its two networks, the sampler's and the extractor's.

The script draws and measures one cell as gdistill evaluate does. In turns with that, it runs only
the compiled sampler and the compiled extractor on the same batches.
"""

import functools

import common
import jax
import numpy as np
from jax import numpy as jnp

from gdistill.evaluation.features import extractors
from gdistill.evaluation.grid import cell_store
from gdistill.evaluation.grid import cells as grid_cells
from gdistill.evaluation.grid import draw_and_measure
from gdistill.evaluation.grid import run as grid_run
from gdistill.models import efficientnet
from gdistill.process import interrupt
from gdistill.training import assemble
from gdistill.workdir import storage


def main() -> None:
  p = common.parser(__doc__)
  p.add_argument('--images', type=int, default=100)
  p.add_argument('--num_steps', type=int, default=4)
  args = common.settle(p.parse_args(), devices=1)
  if args.smoke:
    args.images, args.num_steps = 4, 1
  size = min(50, args.images)
  network = 'tiny3' if args.smoke else 'small32'
  recipe = common.recipe(network, evaluation=dict(batch_size=size, keep_images=0))
  folder = common.folder(recipe, 'progressive')
  sampler, extractor = common.sampler(folder, size), _extractor()
  cell = grid_cells.Cell('student', '', 'ddim', args.num_steps, 1.0)
  drawing = grid_run.drawing_of(
    assemble.Run(recipe), grid_cells.Grid('quick', (), (), args.images, 1, 'ddim', ())
  )
  store = cell_store.Store(storage.path('.'), extractor, recipe.evaluation.bank)
  draw = functools.partial(
    draw_and_measure.draw_share, store, sampler, cell, drawing, interrupt.Interrupt(),
    lambda drawn: None,
  )  # fmt: skip
  seeds, w = np.arange(args.images), np.full(args.images, cell.w)
  labels = drawing.labels

  def networks():
    for first in range(0, args.images, size):
      rows = slice(first, first + size)
      found = extractor(sampler.draw(seeds[rows], labels[rows], w[rows], cell.num_steps))
      jax.block_until_ready(found)

  taken = common.interleaved({'cell': draw, 'networks': networks}, min(args.repeats, 3), 0.1)
  share = [1 - n / c for n, c in zip(taken['networks'], taken['cell'], strict=True)]
  text = f'share of a cell outside the networks, {args.num_steps} steps, {args.images} images'
  medians = common.medians(taken)
  common.show(
    [
      common.row('P18', text, share),
      common.row('P18', 'drawn and measured', [args.images / t for t in taken['cell']],
                 unit='pictures/s'),
    ],
    seconds=medians,
  )  # fmt: skip


def _extractor() -> extractors.Extractor:
  """Returns EfficientNet-Lite0 with constant parameters: the values do not change the time."""
  net = efficientnet.EfficientNetLite0()
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))['params']
  params = jax.tree.map(lambda s: np.full(s.shape, 1e-2, s.dtype), shapes)

  return extractors.Extractor(
    name='lite0', distance='FD-lite0', params=params, digest='random', protocol={},
    apply=lambda params, x: net.apply({'params': params}, efficientnet.prepared(x)),
    features='features', size=efficientnet.FEATURE_SIZE, logits='logits',
  )  # fmt: skip


if __name__ == '__main__':
  main()
