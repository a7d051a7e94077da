import jax
import numpy as np
from jax import numpy as jnp

from gdistill.core import condition


def test_null_is_minus_one_for_every_example():
  np.testing.assert_array_equal(condition.null({'label': jnp.arange(3)})['label'], [-1, -1, -1])


def test_drop_takes_the_given_share_and_leaves_the_rest_alone():
  label = jnp.arange(20_000) % 10
  keys = jax.random.split(jax.random.key(0), len(label))
  found = np.asarray(condition.drop({'label': label}, keys, 0.1)['label'])
  dropped = found < 0
  # The standard deviation of the share of dropped labels is 0.0021.
  assert abs(dropped.mean() - 0.1) < 0.01
  np.testing.assert_array_equal(found[~dropped], np.asarray(label)[~dropped])
