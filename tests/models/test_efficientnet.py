"""EfficientNet-Lite0 has the published number of parameters."""

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.models import efficientnet


def test_parameters_are_counted_as_published():
  net = efficientnet.EfficientNetLite0()
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  # The published count, 4.652 M, has two numbers for each norm's channel; folding leaves one bias.
  assert count == 4_652_008 - 21_008
