import chex
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import condition
from gdistill.core import guidance
from gdistill.core import process

SHAPE = (2, 2, 2, 1)
Z, LOGSNR = jnp.zeros(SHAPE), jnp.zeros(2)
COND = {'label': jnp.array([0, 3])}


def three_with_label_one_without(z, logsnr, cond, w):
  value = jnp.where(cond['label'] < 0, 1.0, 3.0)
  return jnp.broadcast_to(value[:, None, None, None], z.shape)


@pytest.mark.parametrize('one_batch', [False, True])
def test_guidance_points_away_from_the_unconditional_model(one_batch):
  v_fn = guidance.guided(three_with_label_one_without, condition.null, one_batch=one_batch)
  v = v_fn(Z, LOGSNR, COND, jnp.full(2, 2.0))
  chex.assert_trees_all_close(v, jnp.full(SHAPE, 7.0))  # (1 + 2) * 3 - 2 * 1


def test_no_guidance_is_the_conditional_model_bit_for_bit(mixture, cosine):
  x, cond, _, _ = mixture.draw(8)
  logsnr = cosine(jnp.linspace(0.1, 1.0, 8))
  zero = jnp.zeros(8)
  found = guidance.guided(mixture.v_fn)(x, logsnr, cond, zero)
  np.testing.assert_array_equal(found, mixture.v_fn(x, logsnr, cond, zero))


def test_w_is_per_example():
  v = guidance.guided(three_with_label_one_without)(Z, LOGSNR, COND, jnp.array([0.0, 4.0]))
  np.testing.assert_allclose(v[:, 0, 0, 0], [3.0, 11.0])


def test_class_zero_is_not_the_null_class():
  assert condition.NULL_LABEL == -1
  v = guidance.guided(three_with_label_one_without)(Z, LOGSNR, {'label': jnp.zeros(2, int)}, LOGSNR)
  np.testing.assert_allclose(v, 3.0)


def test_two_networks_that_are_one_guide_like_one(mixture, cosine):
  x, cond, w, _ = mixture.draw(16)
  logsnr = cosine(jnp.linspace(0.05, 1.0, 16))
  one = guidance.guided(mixture.v_fn)(x, logsnr, cond, w)
  two = guidance.guided(mixture.v_fn, other=mixture.v_fn)(x, logsnr, cond, w)
  batched = guidance.guided(mixture.v_fn, one_batch=True)(x, logsnr, cond, w)
  np.testing.assert_array_equal(one, two)
  np.testing.assert_allclose(one, batched, atol=1e-5)


def test_autoguidance_points_away_from_a_weaker_network_with_the_same_condition():
  seen = []

  def weak(z, logsnr, cond, w):
    seen.append(cond['label'])
    return jnp.full(z.shape, 2.0)

  v_fn = guidance.guided(three_with_label_one_without, null=lambda c: c, other=weak)
  v = v_fn(Z, LOGSNR, COND, jnp.full(2, 1.0))
  np.testing.assert_allclose(v, 4.0)  # (1 + 1) * 3 - 1 * 2
  np.testing.assert_array_equal(seen[0], COND['label'])


def test_guidance_in_v_is_guidance_in_x(mixture, cosine):
  z, cond, w, _ = mixture.draw(12)
  logsnr = cosine(jnp.linspace(0.1, 0.95, 12))
  v = guidance.guided(mixture.v_fn)(z, logsnr, cond, w)
  expected = mixture.guided_x(z, logsnr, np.asarray(cond['label']), w)
  np.testing.assert_allclose(process.x_from_v(z, v, logsnr), expected, atol=1e-5)


@pytest.mark.parametrize('one_batch', [False, True])
def test_channels_that_are_not_guided_are_the_conditional_models(one_batch):
  v_fn = guidance.guided(three_with_label_one_without, one_batch=one_batch, channels=3)
  v = v_fn(jnp.zeros((2, 2, 2, 4)), LOGSNR, COND, jnp.full(2, 2.0))
  np.testing.assert_allclose(v[..., :3], 7.0)  # (1 + 2) * 3 - 2 * 1
  np.testing.assert_allclose(v[..., 3], 3.0)
