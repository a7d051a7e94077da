"""FID's Inception-v3 has about as many parameters as torchvision's."""

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.models import inception


def test_parameters_are_counted_as_published():
  net = inception.Inception()
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
  count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  # torchvision's Inception-v3 has 23.83 M with 1,000 classes and without the auxiliary head.
  assert abs(count / 23.85e6 - 1) < 0.01
