"""Tables of betas equal those of diffusers' schedulers."""

import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import schedule
from gdistill.published import schedulers
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.samplers import ddim

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs it')
pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
  ('betas', 'settings'),
  [
    (schedule.squared_cosine_betas(), dict(beta_schedule='squaredcos_cap_v2')),
    (schedule.linear_betas(1e-4, 0.02), dict(beta_schedule='linear')),
    *(
      (
        schedule.scaled_linear_betas(start, end),
        dict(beta_schedule='scaled_linear', beta_start=start, beta_end=end),
      )
      for start, end in ((0.00085, 0.012), (0.0015, 0.0195))
    ),
  ],
)
def test_betas_and_their_index_are_those_of_diffusers(betas, settings):
  theirs = diffusers.DDPMScheduler(num_train_timesteps=1000, **settings)
  # diffusers computes the betas in float32, hence the tolerance.
  np.testing.assert_allclose(betas, theirs.betas.numpy(), rtol=1e-4)
  abar = theirs.alphas_cumprod.numpy().astype(np.float64)
  logsnr = np.log(abar) - np.log1p(-abar)
  found = schedule.index(jnp.asarray(logsnr, jnp.float32), betas)
  np.testing.assert_allclose(found, np.arange(1000), atol=0.02)


def test_the_betas_that_a_class_assumes_are_those_of_diffusers():
  for name in schedulers._CLASSES:
    try:
      theirs = getattr(diffusers, name)()
    except ImportError:  # a package that only this class needs is not installed
      continue
    noise, predict = schedulers.noise_from({'_class_name': name})
    np.testing.assert_allclose(networks.betas(noise), theirs.betas.numpy(), rtol=1e-4)
    assert schedulers.PREDICTION_TYPES[predict] == theirs.config.get('prediction_type', 'epsilon')
    for field in ('clip_sample', 'timestep_spacing', 'set_alpha_to_one'):
      if field in theirs.config:
        assert getattr(schedulers._CLASSES[name], field) == theirs.config[field], (name, field)


@pytest.mark.parametrize('num_steps', [1, 2, 4, 50])
@pytest.mark.parametrize('kind', ['v_prediction', 'sample'])
def test_ddim_from_zero_terminal_snr_walks_as_diffusers_does(num_steps, kind):
  config = dict(
    _class_name='DDIMScheduler', beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012,
    rescale_betas_zero_snr=True, timestep_spacing='trailing', clip_sample=False,
    prediction_type=kind,
  )  # fmt: skip
  noise, predict = schedulers.noise_from(config)
  assert noise == recipes.Noise('scaled_linear', zero_terminal_snr=True)
  betas, levels = networks.betas(noise), networks.noise(noise)
  z = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)

  def network(z, index, tanh):  # any function of both inputs will do
    return tanh(0.7 * z + 0.3) * (0.2 + index / 1000)

  theirs = diffusers.DDIMScheduler.from_config(config)
  theirs.set_timesteps(num_steps)
  expected = torch.from_numpy(z)
  for t in theirs.timesteps:
    expected = theirs.step(network(expected, float(t), torch.tanh), t, expected).prev_sample

  def v_fn(z, logsnr, cond, w):
    shown = levels.shown(logsnr)
    index = schedule.index(shown, betas)[:, None, None, None]
    output = network(z, index, jnp.tanh)
    alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(shown))
    return output if predict == 'v' else (alpha * z - output) / sigma

  found = ddim.sample(v_fn, jnp.asarray(z), {}, jnp.zeros(2), num_steps, levels)
  assert np.abs(expected.numpy()).max() > 0.1
  # diffusers rescales its betas in float32; its abar is 0 at the last index, as ours to rounding.
  np.testing.assert_allclose(found, expected.numpy(), atol=5e-4)
