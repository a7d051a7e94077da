"""Features of time and of w equal their formulas in numpy."""

import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.models import embeddings


def test_w_features_are_those_of_diffusers_at_width_256_and_scale_1000():
  # diffusers' get_guidance_scale_embedding: w * 1000, exp(-k ln(10000) / 127), sines first.
  w, half = np.array([0.0, 0.5, 3.25]), 128
  f = np.exp(-np.arange(half) * np.log(10_000) / (half - 1))
  angles = 1000 * w[:, None] * f
  expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  found = embeddings.w_features(jnp.asarray(w, jnp.float32), 256, 1000.0)
  np.testing.assert_allclose(found, expected, atol=2e-3)  # rounding of an angle of 3250 in float32


@pytest.mark.parametrize(('logsnr', 'index'), [(20.0, 0.0), (0.0, 500.0), (-20.0, 1000.0)])
def test_time_features_run_over_a_thousand_steps(logsnr, index):
  found = embeddings.sinusoids(embeddings.phi_index(jnp.array([logsnr])), 4)
  angles = index * np.array([1.0, 1e-4])
  expected = np.concatenate([np.sin(angles), np.cos(angles)])
  np.testing.assert_allclose(found[0], expected, atol=0.05)


def test_the_time_of_sit_runs_from_noise_to_data():
  found = embeddings.linear_time(jnp.array([-jnp.inf, 0.0, 2.0 * np.log(3.0), jnp.inf]))
  np.testing.assert_allclose(found, [0.0, 0.5, 0.75, 1.0], atol=1e-6)
