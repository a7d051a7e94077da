"""Blocks, DDIM and schedules equal second implementations in torch and diffusers."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import schedule
from gdistill.models import blocks
from gdistill.models import embeddings
from gdistill.samplers import ddim

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs diffusers')
pytestmark = pytest.mark.parity


def test_w_features_are_the_guidance_scale_embedding():
  pipeline = diffusers.LatentConsistencyModelPipeline
  w = torch.tensor([0.0, 0.7, 3.0, 6.5])
  expected = pipeline.get_guidance_scale_embedding(None, w, embedding_dim=256).numpy()
  found = embeddings.w_features(jnp.asarray(w.numpy()), 256, 1000.0)
  np.testing.assert_allclose(found, expected, atol=5e-3)  # rounding of an angle of 6500 in float32


@pytest.mark.parametrize('num_steps', [1, 2, 4, 10, 50])
def test_ddim_walks_like_the_stock_scheduler_with_trailing_timesteps(num_steps):
  scheduler = diffusers.DDIMScheduler(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear',
    prediction_type='v_prediction', timestep_spacing='trailing', set_alpha_to_one=True,
    clip_sample=False,
  )  # fmt: skip
  scheduler.set_timesteps(num_steps)
  z = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)

  def v_of(z, cos):  # any function serves that both sides can compute
    return 0.3 * z - 0.2 * cos

  theirs = torch.from_numpy(z)
  for t in scheduler.timesteps:
    alpha = float(scheduler.alphas_cumprod[t]) ** 0.5
    theirs = scheduler.step(v_of(theirs, alpha), t, theirs, eta=0.0).prev_sample

  def v_fn(z, logsnr, cond, w):
    return v_of(z, jnp.cos(schedule.angle(logsnr))[:, None, None, None])

  cond, w = {'label': jnp.zeros(2, jnp.int32)}, jnp.zeros(2)
  noise = schedule.discrete(schedule.scaled_linear_betas(0.00085, 0.012))
  mine = ddim.sample(v_fn, jnp.asarray(z), cond, w, num_steps, noise)
  np.testing.assert_allclose(mine, theirs.numpy(), atol=2e-4)


def test_discrete_schedules_are_the_tables_of_the_stock_schedulers():
  for name, make, ends in (
    ('linear', schedule.linear_betas, (1e-4, 0.02)),
    ('scaled_linear', schedule.scaled_linear_betas, (0.00085, 0.012)),
  ):
    scheduler = diffusers.DDIMScheduler(1000, *ends, beta_schedule=name)
    abar = scheduler.alphas_cumprod.double().numpy()
    found = schedule.discrete(make(*ends))(jnp.asarray(np.arange(1, 1001) / 1000, jnp.float32))
    np.testing.assert_allclose(found, np.log(abar / (1 - abar)), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('resample', [None, 'down', 'up'])
def test_the_residual_block_is_the_same_layers_in_torch(resample):
  h, emb = (np.random.default_rng(i).normal(size=s) for i, s in ((0, (2, 4, 4, 6)), (1, (2, 5))))
  h, emb = h.astype(np.float32), emb.astype(np.float32)
  block = blocks.ResBlock(8, 2, resample=resample)
  shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), h, emb, False))['params']
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32) * 0.3, shapes)
  found = block.apply({'params': params}, h, emb, False)

  def tensor(a):
    return torch.from_numpy(np.asarray(a))

  def norm(x, p):
    return torch.nn.functional.group_norm(x, 2, tensor(p['scale']), tensor(p['bias']), 1e-6)

  def conv(x, p):
    kernel = tensor(p['kernel']).permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(x, kernel, tensor(p['bias']), padding=1)

  def resampled(x):
    if resample == 'down':
      return torch.nn.functional.avg_pool2d(x, 2)
    if resample == 'up':
      return torch.nn.functional.interpolate(x, scale_factor=2, mode='nearest')
    return x

  silu = torch.nn.functional.silu
  x = tensor(h).permute(0, 3, 1, 2)
  y = conv(resampled(silu(norm(x, params['norm1']))), params['conv1'])
  scale, shift = (
    (silu(tensor(emb)) @ tensor(params[n]['kernel']) + tensor(params[n]['bias']))[:, :, None, None]
    for n in ('emb_scale', 'emb_shift')
  )
  y = conv(silu(norm(y, params['norm2']) * (1 + scale) + shift), params['conv2'])
  skip = resampled(x).permute(0, 2, 3, 1) @ tensor(params['shortcut']['kernel'])
  expected = skip + tensor(params['shortcut']['bias']) + y.permute(0, 2, 3, 1)
  np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)
