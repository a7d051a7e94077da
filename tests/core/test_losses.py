import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import losses
from gdistill.core import process
from gdistill.core import projections

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


@pytest.mark.parametrize('logsnr', [-6.0, 0.0, 6.0])
def test_as_sampled_counts_what_clipping_leaves(logsnr):
  # Columns: the teacher's x, the student's x_hat, and the expected error in x.
  table = np.array([
    (1.7, 1.2, 0.0), (1.7, 0.6, 0.4), (1.7, -3.0, 4.0), (-2.0, -1.5, 0.0), (-2.0, 1.5, 2.5),
    (0.5, 0.2, 0.3), (0.5, 1.4, 0.9), (1.0, 1.3, 0.0), (0.5, 0.5005, 0.0005),
  ])  # fmt: skip
  x, x_hat, expected = (jnp.asarray(column, jnp.float32).reshape(-1, 1, 1, 1) for column in table.T)
  logsnr = jnp.full(len(table), logsnr)
  z = jax.random.normal(jax.random.key(0), x.shape)
  alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * np.float64(logsnr[0])))) for s in (-1, 1))

  def loss(x_hat):
    v, v_hat = ((alpha * z - a) / sigma for a in (x, x_hat))
    pair = losses.as_sampled(v_hat, v, z, logsnr, projections.clip)
    return losses.weighted_mse(*pair, logsnr, 'snr_plus_one')

  np.testing.assert_allclose(
    loss(x_hat) * sigma**2, expected[:, 0, 0, 0] ** 2, rtol=1e-3, atol=1e-9
  )
  slope = jax.grad(lambda a: loss(a).sum())(x_hat)[:, 0, 0, 0]
  np.testing.assert_array_equal(np.sign(slope), [0, -1, -1, 0, 1, -1, 1, 0, 1])
