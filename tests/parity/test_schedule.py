"""Tables of betas equal those of diffusers' schedulers."""

import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import schedule

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
