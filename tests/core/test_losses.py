import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import losses
from gdistill.core import process

LOGSNR = jnp.array([-6.0, -1.0, 0.5, 3.0, 8.0])
SHAPE = (5, 2, 2, 1)


@pytest.mark.parametrize(
  ('weight', 'omega'),
  [
    ('snr', lambda snr: snr),
    ('snr_trunc', lambda snr: np.maximum(snr, 1.0)),
    ('snr_plus_one', lambda snr: snr + 1.0),
  ],
)
def test_weights_on_v_are_the_paper_weights_on_x(weight, omega):
  z, v, v_hat = (jax.random.normal(jax.random.key(i), SHAPE) for i in range(3))
  x, x_hat = process.x_from_v(z, v, LOGSNR), process.x_from_v(z, v_hat, LOGSNR)
  expected = omega(np.exp(np.float64(LOGSNR))) * np.mean((x - x_hat) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(losses.weighted_mse(v_hat, v, LOGSNR, weight), expected, rtol=2e-2)


def test_rows_do_not_see_each_other():
  v, v_hat = (jax.random.normal(jax.random.key(i), SHAPE) for i in range(2))
  whole = losses.weighted_mse(v_hat, v, LOGSNR, 'snr_trunc')
  assert whole.shape == (5,)
  changed = losses.weighted_mse(v_hat.at[2].add(1.0), v, LOGSNR, 'snr_trunc')
  np.testing.assert_array_equal(np.flatnonzero(whole != changed), [2])
