"""Tests of the encoder's targets and loss, on models that are known in closed form."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from known_models import COSINE
from known_models import gaussian_flow
from known_models import time_of

from gdistill.core import guidance as core_guidance
from gdistill.core import process
from gdistill.core import projections
from gdistill.samplers import ddim
from gdistill.stages import encoder
from gdistill.stages import progressive

B = 16
GIVEN = dict(noise=COSINE, weight='snr_trunc', w_min=0.0, w_max=4.0)


def batch_of(mixture, count=B):
  x, cond, w, key = mixture.draw(count)
  return {'x': x, 'cond': cond, 'id': jnp.arange(count)}, w, key


def step_of(logsnr, num_steps):
  """Returns i of t = i/N."""
  return jnp.round(time_of(logsnr) * num_steps)


def perfect_encoder(teacher, num_steps, project=None):
  """Returns a student whose prediction equals the target at every grid point."""

  def v_fn(z, logsnr, cond, w):
    i = step_of(logsnr, num_steps)
    return encoder.target(teacher, z, i, num_steps, cond, w, COSINE, project)

  return v_fn


def perfect_decoder(teacher, num_steps):
  def v_fn(z, logsnr, cond, w):
    i = step_of(logsnr, num_steps)
    return progressive.target(teacher, z, i, num_steps, cond, w, COSINE, 'deterministic')

  return v_fn


def angle64(t):
  """Returns phi of the cosine schedule at t [B] in float64; phi is exactly 0 at t = 0."""
  low, high = np.arctan(np.exp(-10.0)), np.arctan(np.exp(10.0))
  t = np.asarray(t, np.float64)
  return np.where(t > 0, low + (high - low) * t, 0.0)[:, None, None, None]


def guided_v64(mixture, z, phi, label, w):
  """Returns v of the guided mixture from its x_hat: v = (cos(phi) z - x_hat) / sin(phi).

  At phi = 0, z holds no information about eps, so v = E[eps] = 0, which is also the limit of v.
  """
  phi1 = phi[:, 0, 0, 0]
  inside = np.maximum(phi1, 1e-9)
  x = mixture.guided_x(z, -2.0 * np.log(np.tan(inside)), label, w)
  v = (np.cos(phi) * z - x) / np.sin(np.maximum(phi, 1e-9))
  return np.where(phi > 0, v, 0.0)


@pytest.mark.parametrize('num_steps', [1, 2, 5])
def test_the_target_is_the_closed_form_of_two_exact_steps_towards_noise(mixture, num_steps):
  z, cond, w, _ = mixture.draw(B)
  i = np.resize(np.arange(num_steps), B)  # i = 0 starts at clean data, i = N - 1 ends at t = 1
  teacher = core_guidance.guided(mixture.v_fn)
  found = encoder.target(teacher, z, jnp.float32(i), num_steps, cond, w, COSINE)

  label, z = np.asarray(cond['label']), np.float64(z)
  phi_t, phi_m, phi_s = (angle64((i + ahead) / num_steps) for ahead in (0.0, 0.5, 1.0))
  v0 = guided_v64(mixture, z, phi_t, label, w)
  x0, eps0 = np.cos(phi_t) * z - np.sin(phi_t) * v0, np.sin(phi_t) * z + np.cos(phi_t) * v0
  z_m = np.cos(phi_m) * x0 + np.sin(phi_m) * eps0
  v1 = guided_v64(mixture, z_m, phi_m, label, w)
  x1, eps1 = np.cos(phi_m) * z_m - np.sin(phi_m) * v1, np.sin(phi_m) * z_m + np.cos(phi_m) * v1
  z_s = np.cos(phi_s) * x1 + np.sin(phi_s) * eps1
  # One step: z_s = cos(phi_s - phi_t) z + sin(phi_s - phi_t) v, solved for v.
  expected = (z_s - np.cos(phi_s - phi_t) * z) / np.sin(phi_s - phi_t)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_teacher_is_asked_at_t_and_then_at_the_later_midpoint_with_the_same_w(mixture):
  seen = []

  def teacher(z, logsnr, cond, w):
    seen.append((np.asarray(time_of(logsnr)), np.asarray(w)))
    return mixture.v_fn(z, logsnr, cond, w)

  z, cond, w, _ = mixture.draw(4)
  i = jnp.array([0.0, 1.0, 4.0, 7.0])
  encoder.target(teacher, z, i, 8, cond, w, COSINE)
  np.testing.assert_allclose(seen[0][0], i / 8, atol=1e-4)
  np.testing.assert_allclose(seen[1][0], (i + 0.5) / 8, atol=1e-5)
  np.testing.assert_array_equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize('num_steps', [1, 2, 8, 64])
def test_n_steps_of_a_perfect_encoder_are_2n_of_its_teachers_inversion(mixture, num_steps):
  x, cond, w, _ = mixture.draw(B)
  teacher = core_guidance.guided(mixture.v_fn)
  student = perfect_encoder(teacher, num_steps)
  mine = ddim.invert(student, x, cond, w, num_steps, COSINE)
  theirs = ddim.invert(teacher, x, cond, w, 2 * num_steps, COSINE)
  np.testing.assert_allclose(mine, theirs, atol=1e-4)


def clipped_inversion(teacher, x, cond, w, num_steps):
  """Inverts x to z_1 by z_s = cos(phi_s) x_hat + sin(phi_s) eps_hat, with clipped x_hat.

  At phi = 0, x_hat is not clipped.
  """
  z = np.float64(x)
  for i in range(num_steps):
    logsnr = COSINE(jnp.full(len(z), i / num_steps, jnp.float32))
    phi, phi_s = (angle64(np.full(len(z), j / num_steps)) for j in (i, i + 1))
    v = np.float64(teacher(jnp.float32(z), logsnr, cond, w))
    x_hat, eps = np.cos(phi) * z - np.sin(phi) * v, np.sin(phi) * z + np.cos(phi) * v
    if i:
      x_hat = np.clip(x_hat, -1.0, 1.0)
      eps = (z - np.cos(phi) * x_hat) / np.sin(phi)
    z = np.cos(phi_s) * x_hat + np.sin(phi_s) * eps
  return z


@pytest.mark.parametrize('num_steps', [1, 4])
def test_with_clipped_teacher_steps_they_are_2n_of_its_clipped_inversion(mixture, num_steps):
  x, cond, w, _ = mixture.draw(B)
  teacher = core_guidance.guided(mixture.v_fn)
  student = perfect_encoder(teacher, num_steps, projections.clip)
  # The student's own x_hat is within [-1, 1], so its sampler need not clip.
  mine = ddim.invert(student, x, cond, w, num_steps, COSINE)
  theirs = clipped_inversion(teacher, x, cond, w, 2 * num_steps)
  np.testing.assert_allclose(mine, theirs, atol=1e-4)
  own = ddim.invert(teacher, x, cond, w, 2 * num_steps, COSINE, project=projections.clip)
  np.testing.assert_allclose(own, theirs, atol=1e-4)
  plain = ddim.invert(teacher, x, cond, w, 2 * num_steps, COSINE)
  assert abs(plain - theirs).max() > 0.1  # clipping changes the result of this mixture


@pytest.mark.parametrize('num_steps', [1, 4])
def test_encoding_and_decoding_by_perfect_students_is_their_teachers_round_trip(mixture, num_steps):
  x, cond, w, _ = mixture.draw(B)
  teacher = core_guidance.guided(mixture.v_fn)
  encoded = ddim.invert(perfect_encoder(teacher, num_steps), x, cond, w, num_steps, COSINE)
  decoder = perfect_decoder(teacher, num_steps)
  mine = ddim.sample(decoder, encoded, cond, w, num_steps, COSINE)
  noise = ddim.invert(teacher, x, cond, w, 2 * num_steps, COSINE)
  theirs = ddim.sample(teacher, noise, cond, w, 2 * num_steps, COSINE)
  np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize('num_steps', [1, 2, 4])
def test_students_of_the_exact_flow_return_the_image(num_steps):
  c, shape = 0.5, (8, 3, 3, 1)
  x = c * jax.random.normal(jax.random.key(0), shape)
  cond, w = {'label': jnp.zeros(8, jnp.int32)}, jnp.zeros(8)
  half = 0.5 / num_steps
  student = perfect_encoder(gaussian_flow(c, -half), num_steps)
  z = ddim.invert(student, x, cond, w, num_steps, COSINE)
  np.testing.assert_allclose(z, x / c, atol=1e-3)  # r = 1 / c from data to noise
  back = ddim.sample(
    perfect_decoder(gaussian_flow(c, half), num_steps), z, cond, w, num_steps, COSINE
  )
  np.testing.assert_allclose(back, x, atol=1e-3)


@pytest.mark.parametrize('on_trajectory', [False, True])
def test_a_perfect_encoder_has_no_loss_and_another_has(mixture, on_trajectory):
  batch, _, key = batch_of(mixture)
  teacher = core_guidance.guided(mixture.v_fn)
  given = dict(num_steps=jnp.int32(4), on_trajectory=on_trajectory, **GIVEN)
  loss = encoder.loss(perfect_encoder(teacher, 4), teacher, batch, key, **given)
  assert loss.shape == (B,) and np.max(loss) < 1e-8
  other = encoder.loss(teacher, teacher, batch, key, **given)
  assert np.mean(other) > 1e-3


@pytest.mark.parametrize('on_trajectory', [False, True])
def test_an_encoder_beyond_the_edge_its_target_is_on_has_no_loss(mixture, on_trajectory):
  batch, _, key = batch_of(mixture)
  teacher = core_guidance.guided(mixture.v_fn)
  clipped = perfect_encoder(teacher, 4, projections.clip)
  outside = []

  def beyond(z, logsnr, cond, w):
    v = clipped(z, logsnr, cond, w)
    x = process.x_from_v(z, v, logsnr)
    sigma = jnp.sqrt(jax.nn.sigmoid(-logsnr))[:, None, None, None]
    # x_hat at the edge is doubled. At sigma = 0, x_hat does not depend on v.
    far = (abs(x) > 0.9999) & (sigma > 0)
    outside.append(np.asarray(far).any())
    return v - jnp.where(far, x, 0.0) / jnp.where(sigma > 0, sigma, 1.0)

  given = dict(
    num_steps=jnp.int32(4), on_trajectory=on_trajectory, project=projections.clip, **GIVEN
  )
  loss = encoder.loss(beyond, teacher, batch, key, loss_project=projections.clip, **given)
  assert outside == [True] and np.isfinite(loss).all() and np.max(loss) < 1e-6
  assert np.mean(encoder.loss(clipped, teacher, batch, key, **given)) > 1e-2


def seen_by_a_student(mixture, count, **more):
  """Returns the student's arguments (z, t, cond, w) in one call of the loss, and the loss."""
  batch, _, key = batch_of(mixture, count)
  seen = []

  def student(z, logsnr, cond, w):
    seen.append((z, jnp.round(time_of(logsnr) * 4) / 4, cond, w))
    return 0.3 * z

  given = {**GIVEN, 'num_steps': jnp.int32(4), **more}
  loss = encoder.loss(student, core_guidance.guided(mixture.v_fn), batch, key, **given)
  return seen[0], loss


def test_the_grid_is_zero_to_n_minus_one_and_never_n(mixture):
  batch, _, key = batch_of(mixture, 400)
  seen = []

  def student(z, logsnr, cond, w):
    seen.append((np.asarray(z), np.asarray(time_of(logsnr)), np.asarray(w)))
    return z

  encoder.loss(student, mixture.v_fn, batch, key, num_steps=jnp.int32(4), **GIVEN)
  z, t, w = seen[0]
  np.testing.assert_allclose(np.unique(np.round(t * 4, 3)), [0, 1, 2, 3])
  assert 0 <= w.min() < 0.2 and 3.8 < w.max() <= 4
  at_data = np.round(t * 4) == 0
  np.testing.assert_array_equal(z[at_data], np.asarray(batch['x'])[at_data])
  assert abs(z[~at_data] - np.asarray(batch['x'])[~at_data]).max() > 0.1


@pytest.mark.parametrize('project', [None, projections.clip])
def test_states_on_the_trajectory_are_where_the_teachers_inversion_passes(mixture, project):
  (z, t, cond, w), _ = seen_by_a_student(mixture, B, on_trajectory=True, project=project)
  x, teacher = mixture.draw(B)[0], core_guidance.guided(mixture.v_fn)
  passed = [x]
  with jax.disable_jit():
    for i in range(8):  # steps of length 0.5/N with N = 4
      logsnr, after = (COSINE(jnp.full(B, j / 8, jnp.float32)) for j in (i, i + 1))
      v = teacher(passed[-1], logsnr, cond, w)
      if project is not None:
        v = process.project_v(passed[-1], v, logsnr, project)
      passed.append(process.ddim(passed[-1], v, logsnr, after))
  steps = np.asarray(t * 8).astype(int)
  assert set(steps) == {0, 2, 4, 6}
  for row, i in enumerate(steps):
    np.testing.assert_allclose(z[row], passed[i][row], atol=2e-4)
  if project is not None:
    np.testing.assert_allclose(clipped_inversion(teacher, x, cond, w, 8), passed[-1], atol=2e-4)


def test_w_power_divides_each_loss_by_the_strength_it_was_drawn_at(mixture):
  (_, _, _, w), loss = seen_by_a_student(mixture, B)
  _, powered = seen_by_a_student(mixture, B, w_power=2.0)
  np.testing.assert_allclose(powered, loss / (1 + np.float64(w)) ** 2, rtol=1e-5)


@pytest.mark.parametrize('on_trajectory', [False, True])
def test_rows_do_not_see_each_other_and_noise_belongs_to_its_place(mixture, on_trajectory):
  batch, _, key = batch_of(mixture)

  def loss(batch):
    return encoder.loss(
      lambda z, *_: 0.3 * z, mixture.v_fn, batch, key, num_steps=jnp.int32(4),
      on_trajectory=on_trajectory, **GIVEN,
    )  # fmt: skip

  whole = loss(batch)
  part = loss(jax.tree.map(lambda a: a[3:7], batch))
  np.testing.assert_allclose(whole[3:7], part, rtol=1e-5, atol=1e-8)
