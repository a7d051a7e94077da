import numpy as np
from jax import numpy as jnp

from gdistill.core import projections


def test_clip_touches_only_what_is_outside():
  x = jnp.array([-3.0, -0.5, 0.0, 0.9, 1.1]).reshape(1, 5, 1, 1)
  np.testing.assert_allclose(projections.clip(x).ravel(), [-1, -0.5, 0, 0.9, 1])


def test_dynamic_thresholding_scales_an_image_by_its_own_percentile():
  inside, outside = jnp.linspace(-0.9, 0.9, 9), jnp.linspace(-4.0, 4.0, 9)
  x = jnp.stack([inside, outside]).reshape(2, 3, 3, 1)
  found = projections.dynamic_threshold(1.0)(x).reshape(2, 9)
  np.testing.assert_allclose(found[0], inside)  # s = max(1, 0.9) = 1 changes nothing
  np.testing.assert_allclose(found[1], outside / 4.0)
  half = projections.dynamic_threshold(0.5)(x).reshape(2, 9)  # the median of |x| is 2
  np.testing.assert_allclose(half[1], np.clip(outside, -2, 2) / 2)


def test_clipping_does_not_hide_what_is_infinite():
  x = jnp.array([-jnp.inf, -3.0, 0.5, jnp.inf, jnp.nan]).reshape(1, 5, 1, 1)
  found = projections.unhidden(projections.clip)(x).ravel()
  np.testing.assert_array_equal(found, [np.nan, -1.0, 0.5, np.nan, np.nan])
  assert projections.unhidden(None) is None
