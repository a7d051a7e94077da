"""DiT's two layouts are converted both ways; SiT's velocity becomes v."""

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import dit as convert
from gdistill.core import predict
from gdistill.core import schedule
from gdistill.models import dit
from gdistill.models import embeddings

NET = dit.DiT(width=16, depth=2, heads=2, patch=2, num_classes=3, learned_sigma=True)


def params_of(net, seed=0):
  z, one, cond = jnp.zeros((1, 8, 8, 2)), jnp.ones(1), {'label': jnp.zeros(1, int)}
  shapes = jax.eval_shape(net.init, jax.random.key(0), z, one, cond, one)['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)


@pytest.mark.parametrize('layout', ['original', 'diffusers'])
def test_there_and_back_is_bit_for_bit(layout):
  params = params_of(NET)
  state = convert.state_from(params, layout, 4)
  chex.assert_trees_all_equal(convert.params_from(state), params)
  again = convert.state_from(convert.params_from(state), layout, 4)
  chex.assert_trees_all_equal(again, state)


def test_a_bias_of_k_is_left_out():
  state = convert.state_from(params_of(NET), 'original', 4)
  biased = {**state, 'blocks.1.attn.qkv.bias': np.arange(48, dtype=np.float32)}
  found = convert.params_from(biased)['block1']
  np.testing.assert_array_equal(found['q']['bias'], np.arange(16))
  np.testing.assert_array_equal(found['v']['bias'], np.arange(32, 48))
  assert set(found['k']) == {'kernel'}


def test_what_is_missing_left_over_or_another_network_is_named():
  params = params_of(NET)
  state, theirs = (convert.state_from(params, name, 4) for name in ('original', 'diffusers'))
  short = {name: a for name, a in state.items() if name != 'blocks.1.mlp.fc2.bias'}
  with pytest.raises(errors.ConfigError, match=r'1 missing: blocks.1.mlp.fc2.bias \(16,\)$'):
    convert.params_from(short)
  with pytest.raises(errors.ConfigError, match=r'1 not expected: surplus \(1,\)$'):
    convert.params_from({**state, 'surplus': np.zeros(1)})
  with pytest.raises(errors.ConfigError, match="'pos_embed' holds other positions"):
    convert.params_from({**state, 'pos_embed': state['pos_embed'][:, ::-1]})
  name = 'transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight'
  with pytest.raises(errors.ConfigError, match='the same time and label embedders'):
    convert.params_from({**theirs, name: theirs[name] + 1.0})
  with pytest.raises(errors.ConfigError, match='no place in DiT'):
    convert.state_from({**params, 'w_proj': {}}, 'original', 4)


def test_the_velocity_of_an_exact_flow_becomes_the_exact_v():
  # For x ~ N(mu, c^2), E[x | y] and E[eps | y] of any y = a x + b eps have closed forms.
  mu, c = 0.7, 0.4
  asked = []

  def denoised(y, a, b):
    rest = (y - a * mu) / (a**2 * c**2 + b**2)
    return mu + a * c**2 * rest, b * rest

  def network(y, logsnr, cond, w):
    t = embeddings.linear_time(logsnr)[:, None, None, None]
    asked.append((cond, w))
    x_hat, eps_hat = denoised(y, t, 1.0 - t)
    return x_hat - eps_hat

  logsnr = jnp.array([-20.0, -6.0, -1.0, 0.0, 2.5, 7.0, 20.0])
  z = jax.random.normal(jax.random.key(0), (7, 2, 2, 3))
  alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(logsnr))
  x_hat, eps_hat = denoised(z, alpha, sigma)
  cond, w = {'label': jnp.arange(7)}, jnp.arange(7.0)
  found = predict.flow_as_v(network)(z, logsnr, cond, w)
  np.testing.assert_allclose(found, alpha * eps_hat - sigma * x_hat, atol=2e-5)
  assert asked[0][0] is cond and asked[0][1] is w
