import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import predict
from gdistill.core import process

SHAPE = (4, 2, 2, 1)
T = jnp.array([0.05, 0.4, 0.7, 0.98])


@pytest.mark.parametrize('kind', ['x', 'eps', 'v'])
def test_networks_that_know_the_truth_give_the_true_v(kind, cosine):
  x, eps = (jax.random.normal(jax.random.key(i), SHAPE) for i in (0, 1))
  logsnr = cosine(T)
  truth = {'x': x, 'eps': eps, 'v': process.v_from(x, eps, logsnr)}
  v_fn = predict.as_v(lambda *_: truth[kind], kind, cosine)
  found = v_fn(process.diffuse(x, eps, logsnr), logsnr, {}, T)
  np.testing.assert_allclose(found, truth['v'], atol=5e-5)


def test_a_network_is_shown_the_limits_of_the_schedule_and_never_infinity(cosine):
  shown = []
  v_fn = predict.as_v(lambda z, logsnr, *_: shown.append(logsnr) or z, 'eps', cosine)
  v = v_fn(jnp.ones(SHAPE), jnp.array([jnp.inf, 25.0, -30.0, 1.0]), {}, T)
  np.testing.assert_array_equal(shown[0], [20.0, 20.0, -20.0, 1.0])
  assert np.isfinite(v).all()
