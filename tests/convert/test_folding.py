"""A batch norm folded into its convolution is the same function."""

import numpy as np

from gdistill.convert import folding

RNG = np.random.default_rng(0)


def test_a_folded_norm_is_the_norm_after_the_convolution():
  kernel = RNG.normal(size=(5, 3, 1, 1))  # [O, I, H, W]
  state = {
    'c.weight': kernel, 'n.weight': RNG.uniform(0.5, 2, 5), 'n.bias': RNG.normal(size=5),
    'n.running_mean': RNG.normal(size=5), 'n.running_var': RNG.uniform(0.5, 2, 5),
    'n.num_batches_tracked': np.array(3),
  }  # fmt: skip
  given = dict(state)
  found = folding.conv(state, 'c', 'n', 1e-3, 'a network')
  x = RNG.normal(size=(7, 3))
  y = x @ kernel[:, :, 0, 0].T
  expected = given['n.weight'] * (y - given['n.running_mean'])
  expected = expected / np.sqrt(given['n.running_var'] + 1e-3) + given['n.bias']
  np.testing.assert_allclose(x @ found['kernel'][0, 0] + found['bias'], expected, rtol=1e-5)
  assert not state
