"""Autoencoders: shapes, the codebook's nearest entry, limits of the posterior, independent rows."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.models import vae

KL = vae.KL(widths=(16, 32), layers=1, groups=4)
VQ = vae.VQ(widths=(16, 32), layers=1, groups=4, entries=20)
TINY = vae.Tiny(6, width=8, pool=True)
RNG = np.random.default_rng(0)


def params_of(net):
  """Returns random parameters, scaled so that outputs are about as large as inputs."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  return jax.tree.map(
    lambda leaf: np.float32(RNG.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))), shapes
  )


def apply(net, params, method, a):
  return jax.jit(net.apply, static_argnames='method')({'params': params}, a, method=method)


@pytest.mark.parametrize(
  ('net', 'factor', 'channels'),
  [(KL, 2, 4), (VQ, 2, 3), (TINY, 8, 6), (vae.KL(), 8, 4), (vae.VQ(), 4, 3), (vae.Tiny(), 8, 4)],
)
def test_latents_are_smaller_by_the_factor_and_images_come_back_whole(net, factor, channels):
  assert (net.factor, net.latent_channels) == (factor, channels)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  x = jax.ShapeDtypeStruct((2, 64, 32, 3), jnp.float32)
  on = lambda method, a: jax.eval_shape(lambda p, a: net.apply(p, a, method=method), shapes, a)
  mean, std = on('encode', x)
  assert mean.shape == std.shape == (2, 64 // factor, 32 // factor, channels)
  assert on('decode', mean).shape == x.shape


def test_stable_diffusions_autoencoder_has_the_published_number_of_parameters():
  shapes = jax.eval_shape(vae.KL().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_653_863


@pytest.mark.parametrize('net', [KL, VQ, TINY], ids=['kl', 'vq', 'tiny'])
def test_rows_do_not_see_each_other(net):
  params = params_of(net)
  x = RNG.normal(size=(3, 32, 32, 3)).astype(np.float32)
  z = RNG.normal(size=(3, 4, 4, net.latent_channels)).astype(np.float32)
  for method, a in (('encode', x), ('decode', z)):
    b = np.concatenate([a[1:2] + 1, a[1:]])
    first, second = (jax.tree.leaves(apply(net, params, method, each)) for each in (a, b))
    assert np.abs(first[0][0] - second[0][0]).max() > 1e-3
    for one, two in zip(first, second, strict=True):
      np.testing.assert_allclose(one[1:], two[1:], atol=1e-5)


def test_the_log_variance_of_the_posterior_has_limits():
  params = params_of(KL)
  params['quant_conv']['bias'] = np.array([0, 0, 0, 0, -1e3, -1e3, 1e3, 0], np.float32)
  mean, std = apply(KL, params, 'encode', RNG.normal(size=(3, 32, 32, 3)).astype(np.float32))
  np.testing.assert_allclose(std[..., :2], np.exp(-15.0), rtol=1e-5)
  np.testing.assert_allclose(std[..., 2], np.exp(10.0), rtol=1e-5)
  assert np.std(std[..., 3]) > 0
  assert np.abs(mean).max() < 100


def test_quantise_finds_the_nearest_entry_and_decode_starts_with_it():
  params = params_of(VQ)
  table = params['quantize']['embedding']
  z = RNG.normal(size=(3, 4, 4, 3)).astype(np.float32) * table.std()
  nearest = np.linalg.norm(z[..., None, :] - table, axis=-1).argmin(-1)
  assert len(np.unique(nearest)) > 10
  found = apply(VQ, params, 'quantise', z)
  np.testing.assert_array_equal(found, table[nearest])
  np.testing.assert_array_equal(apply(VQ, params, 'quantise', found), found)
  images = apply(VQ, params, 'decode', z)
  np.testing.assert_array_equal(images, apply(VQ, params, 'decode', found))
  assert np.std(images) > 1e-3


def test_the_tiny_decoder_does_not_tell_far_latents_apart():
  params = params_of(TINY)
  z = np.sign(RNG.normal(size=(3, 4, 4, 6))).astype(np.float32)
  one, two, near = (apply(TINY, params, 'decode', a * z) for a in (40.0, 80.0, 1.0))
  np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)  # tanh near 1 may be off by a rounding
  assert np.abs(one - near).max() > 1e-3


def test_the_tiny_network_sees_zero_for_black_and_one_for_white():
  params = params_of(TINY)
  black, white = (np.full((3, 32, 32, 3), value, np.float32) for value in (-1.0, 1.0))
  for image, level in ((black, 0.0), (white, 1.0)):
    net = vae.TinyEncoder(6, 8, TINY.blocks_down, pool=True)
    inside = jax.jit(net.apply)({'params': params['encoder']}, np.full_like(image, level))
    np.testing.assert_allclose(apply(TINY, params, 'encode', image)[0], inside, atol=1e-5)
  last = params['decoder']['layers_18']
  last['kernel'] = np.zeros_like(last['kernel'])
  last['bias'] = np.array([0.0, 0.5, 1.0], np.float32)
  images = apply(TINY, params, 'decode', np.zeros((3, 4, 4, 6), np.float32))
  np.testing.assert_allclose(images, np.broadcast_to([-1.0, 0.0, 1.0], images.shape), atol=1e-6)
