"""Tests of the stages' targets and losses, on the class-conditional Gaussian mixture."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import numpy as jnp
from known_models import COSINE
from known_models import time_of

from gdistill.core import guidance as core_guidance
from gdistill.core import process
from gdistill.core import projections
from gdistill.samplers import ddim
from gdistill.samplers import noise
from gdistill.samplers import stochastic
from gdistill.stages import draw
from gdistill.stages import guidance
from gdistill.stages import progressive
from gdistill.stages import teacher as teacher_stage

B = 16


def batch_of(mixture, count=B):
  x, cond, w, key = mixture.draw(count)
  return {'x': x, 'cond': cond, 'id': jnp.arange(count)}, w, key


def perfect_student(teacher, num_steps, sampler, project=None):
  """Returns a student whose prediction equals the target at every grid point."""

  def v_fn(z, logsnr, cond, w):
    i = jnp.round(time_of(logsnr) * num_steps)
    return progressive.target(teacher, z, i, num_steps, cond, w, COSINE, sampler, project)

  return v_fn


def test_stage_one_aims_at_the_closed_form_guided_denoiser(mixture):
  seen = {}

  def student(z, logsnr, cond, w):
    seen.update(z=z, logsnr=logsnr, cond=cond, w=w)
    return jnp.zeros_like(z)

  batch, _, key = batch_of(mixture)
  pair = core_guidance.halves(mixture.v_fn)
  guidance.loss(
    student, pair, batch, key, noise=COSINE, weight='snr_plus_one', w_min=0.0, w_max=4.0
  )
  assert 0 <= seen['w'].min() < 1.5 and 2.5 < seen['w'].max() <= 4

  def perfect(z, logsnr, cond, w):
    expected = mixture.guided_x(z, logsnr, np.asarray(cond['label']), w)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * np.float64(logsnr)))) for s in (-1, 1))
    # v = (alpha z - x) / sigma, in float64; the smallest sigma of this draw is about 0.02.
    v = (alpha[:, None, None, None] * np.float64(z) - expected) / sigma[:, None, None, None]
    return jnp.asarray(v, jnp.float32)

  # x_hat is right to 1e-5, so v is right to 1e-5 / sigma; the loss is the square of v's error.
  v_c, v_n = pair(seen['z'], seen['logsnr'], seen['cond'])
  v = core_guidance.combine(v_c, v_n, seen['w'])
  x_hat = process.x_from_v(seen['z'], v, seen['logsnr'])
  label = np.asarray(seen['cond']['label'])
  expected = mixture.guided_x(seen['z'], seen['logsnr'], label, seen['w'])
  np.testing.assert_allclose(x_hat, expected, atol=1e-5)
  loss = guidance.loss(
    perfect, pair, batch, key, noise=COSINE, weight='snr_plus_one', w_min=0.0, w_max=4.0
  )
  assert loss.shape == (B,) and np.max(loss) < 1e-6


def test_several_ws_per_pass_are_the_mean_over_those_ws(mixture):
  batch, _, key = batch_of(mixture)
  calls = []

  def teacher(z, logsnr, cond, w):
    calls.append(len(z))
    return mixture.v_fn(z, logsnr, cond, w)

  def student(z, logsnr, cond, w):
    return 0.1 * z

  pair = core_guidance.halves(teacher)
  given = dict(noise=COSINE, weight='snr_trunc', w_min=0.0, w_max=4.0, ws_per_pass=3, w_power=2.0)
  loss = guidance.loss(student, pair, batch, key, **given)
  assert calls == [B, B]
  keys_t, keys_eps, *keys_w = draw.example_keys(key, batch['id'], 5)
  t, eps = draw.uniform(keys_t), draw.normal_like(keys_eps, batch['x'])
  logsnr = COSINE(t)
  z = process.diffuse(batch['x'], eps, logsnr)
  omega = np.maximum(1 / (1 + np.exp(-np.float64(logsnr))), 1 / (1 + np.exp(np.float64(logsnr))))
  expected = 0.0
  for keys in keys_w:
    w = draw.uniform(keys, 0.0, 4.0)
    v = core_guidance.guided(mixture.v_fn)(z, logsnr, batch['cond'], w)
    expected += omega * np.mean((v - 0.1 * z) ** 2, axis=(1, 2, 3)) / (1 + w) ** 2 / 3
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize('num_steps', [1, 2, 8, 256])
def test_n_steps_of_a_perfect_student_are_2n_of_its_teacher(mixture, num_steps):
  _, cond, w, key = mixture.draw(B)
  z = jax.random.normal(key, (B, *mixture.shape))
  teacher = core_guidance.guided(mixture.v_fn)
  student = perfect_student(teacher, num_steps, 'deterministic')
  mine = ddim.sample(student, z, cond, w, num_steps, COSINE)
  theirs = ddim.sample(teacher, z, cond, w, 2 * num_steps, COSINE)
  np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize('num_steps', [1, 4])
def test_with_clipped_teacher_steps_they_are_2n_of_its_clipped_sampler(mixture, num_steps):
  _, cond, w, key = mixture.draw(B)
  z = jax.random.normal(key, (B, *mixture.shape))
  teacher, clip = core_guidance.guided(mixture.v_fn), projections.clip
  student = perfect_student(teacher, num_steps, 'deterministic', clip)
  # The student's own x_hat is within [-1, 1], so its sampler need not clip.
  mine = ddim.sample(student, z, cond, w, num_steps, COSINE)
  theirs = ddim.sample(teacher, z, cond, w, 2 * num_steps, COSINE, clip)
  np.testing.assert_allclose(mine, theirs, atol=1e-4)
  other = ddim.sample(teacher, z, cond, w, 2 * num_steps, COSINE)
  assert abs(other - theirs).max() > 0.1  # clipping changes the result of this mixture


@pytest.mark.parametrize('sampler', ['deterministic', 'stochastic'])
def test_a_student_beyond_the_edge_its_target_is_on_has_no_loss(mixture, sampler):
  batch, _, key = batch_of(mixture)
  teacher = core_guidance.guided(mixture.v_fn)
  clipped = perfect_student(teacher, 4, sampler, projections.clip)

  def beyond(z, logsnr, cond, w):
    v = clipped(z, logsnr, cond, w)
    x = process.x_from_v(z, v, logsnr)
    sigma = jnp.sqrt(jax.nn.sigmoid(-logsnr))[:, None, None, None]
    assert (abs(x) > 0.9999).any()
    return v - jnp.where(abs(x) > 0.9999, x, 0.0) / sigma  # doubles x_hat at the edge

  given = dict(
    num_steps=jnp.int32(4), noise=COSINE, sampler=sampler, weight='snr_trunc', w_min=0.0, w_max=4.0
  )
  loss = progressive.loss(beyond, teacher, batch, key, loss_project=projections.clip, **given)
  assert np.isfinite(loss).all() and np.max(loss) < 1e-6
  assert np.mean(progressive.loss(clipped, teacher, batch, key, **given)) > 1e-2


def test_stage_one_with_a_projected_loss_asks_for_the_clipped_guided_denoiser(mixture):
  batch, _, key = batch_of(mixture)
  shown = []

  def student(far):
    def v_fn(z, logsnr, cond, w):
      x = mixture.guided_x(z, logsnr, np.asarray(cond['label']), w)
      shown.append(x)
      x = np.where(abs(x) > 1, far * np.sign(x), x)
      alpha, sigma = _alpha_sigma64(logsnr)
      return jnp.asarray((alpha * np.float64(z) - x) / sigma, jnp.float32)

    return v_fn

  def loss(far, project):
    return guidance.loss(
      student(far), core_guidance.halves(mixture.v_fn), batch, key, noise=COSINE,
      weight='snr_plus_one', w_min=0.0, w_max=4.0, ws_per_pass=2, loss_project=project,
    )  # fmt: skip

  for far in (1.0, 3.0):
    assert np.max(loss(far, projections.clip)) < 1e-6
    assert np.mean(loss(far, None)) > 1e-2
  assert (abs(shown[0]) > 1).any() and (abs(shown[0]) < 1).any()


@pytest.mark.parametrize('num_steps', [2, 3, 8])
def test_a_perfect_stochastic_student_walks_in_pairs_of_teacher_steps(mixture, num_steps):
  _, cond, w, key = mixture.draw(B)
  z = jax.random.normal(key, (B, *mixture.shape))
  keys = noise.image_keys(jnp.arange(B))
  teacher = core_guidance.guided(mixture.v_fn)
  student = perfect_student(teacher, num_steps, 'stochastic')
  mine = stochastic.sample(student, z, cond, w, num_steps, COSINE, keys)

  def at(i):
    return COSINE(jnp.full(B, i / num_steps, jnp.float32))

  def step(z, i):  # one deterministic step of the teacher, of length 1/N
    return process.ddim(z, teacher(z, at(i), cond, w), at(i), at(i - 1))

  for draw_number, i in enumerate(range(num_steps, 1, -1)):
    eps = noise.normal(keys, draw_number + 1, z.shape[1:])
    z = process.renoise(step(step(z, i), i - 1), eps, at(i - 2), at(i - 1))
  np.testing.assert_allclose(mine, step(z, 1), atol=1e-4)


@pytest.mark.parametrize('sampler', ['deterministic', 'stochastic'])
def test_a_perfect_student_has_no_loss_and_another_has(mixture, sampler):
  batch, _, key = batch_of(mixture)
  teacher = core_guidance.guided(mixture.v_fn)
  given = dict(noise=COSINE, sampler=sampler, weight='snr_trunc', w_min=0.0, w_max=4.0)
  perfect = perfect_student(teacher, 4, sampler)
  loss = progressive.loss(perfect, teacher, batch, key, num_steps=jnp.int32(4), **given)
  assert loss.shape == (B,) and np.max(loss) < 1e-8
  other = progressive.loss(teacher, teacher, batch, key, num_steps=jnp.int32(4), **given)
  assert np.mean(other) > 1e-3


def test_w_power_divides_each_loss_by_the_strength_it_was_drawn_at(mixture):
  batch, _, key = batch_of(mixture)
  seen = []

  def student(z, logsnr, cond, w):
    seen.append(np.float64(w))
    return 0.3 * z

  def loss(**more):
    return progressive.loss(
      student, mixture.v_fn, batch, key, num_steps=jnp.int32(4), noise=COSINE,
      sampler='deterministic', weight='snr_trunc', w_min=0.0, w_max=4.0, **more,
    )  # fmt: skip

  np.testing.assert_allclose(loss(w_power=2.0), loss() / (1 + seen[0]) ** 2, rtol=1e-5)


def test_the_grid_is_one_to_n_and_never_zero(mixture):
  batch, _, key = batch_of(mixture, 400)
  seen = []

  def student(z, logsnr, cond, w):
    seen.append(np.asarray(time_of(logsnr)))
    return z

  progressive.loss(
    student, mixture.v_fn, batch, key, num_steps=jnp.int32(4), noise=COSINE,
    sampler='deterministic', weight='snr_trunc', w_min=0.0, w_max=4.0,
  )  # fmt: skip
  found = np.unique(np.round(seen[0] * 4, 3))
  np.testing.assert_allclose(found, [1, 2, 3, 4])


def test_the_teacher_is_asked_at_t_and_then_at_the_midpoint_with_the_same_w(mixture):
  seen = []

  def teacher(z, logsnr, cond, w):
    seen.append((np.asarray(time_of(logsnr)), np.asarray(w)))
    return mixture.v_fn(z, logsnr, cond, w)

  z, cond, w, _ = mixture.draw(4)
  i = jnp.array([1.0, 2.0, 5.0, 8.0])
  progressive.target(teacher, z, i, 8, cond, w, COSINE, 'deterministic')
  np.testing.assert_allclose(seen[0][0], i / 8, atol=1e-5)
  np.testing.assert_allclose(seen[1][0], (i - 0.5) / 8, atol=1e-5)
  np.testing.assert_array_equal(seen[0][1], seen[1][1])
  seen.clear()
  progressive.target(teacher, z, i, 8, cond, w, COSINE, 'stochastic')
  np.testing.assert_allclose(seen[1][0], (i - 1.0) / 8, atol=1e-4)


def test_the_target_is_the_printed_quotient_in_float64(mixture):
  # x~ = (z_t'' - (sigma''/sigma) z_t) / (alpha'' - (sigma''/sigma) alpha), at an N small enough for
  # this quotient to be accurate.
  z, cond, w, _ = mixture.draw(4)
  n, i = 4, jnp.array([2.0, 3.0, 4.0, 1.0])
  teacher = core_guidance.guided(mixture.v_fn)
  v = progressive.target(teacher, z, i, n, cond, w, COSINE, 'deterministic')
  logsnr = [COSINE((i - j) / n) for j in (0.0, 0.5, 1.0)]
  z_m = process.ddim(z, teacher(z, logsnr[0], cond, w), logsnr[0], logsnr[1])
  z_s = process.ddim(z_m, teacher(z_m, logsnr[1], cond, w), logsnr[1], logsnr[2])
  (a, s), _, (a2, s2) = (_alpha_sigma64(value) for value in logsnr)
  x = (np.float64(z_s) - s2 / s * np.float64(z)) / (a2 - s2 / s * a)
  np.testing.assert_allclose(process.x_from_v(z, v, logsnr[0]), x, atol=2e-4)


def _alpha_sigma64(logsnr):
  logsnr = np.float64(logsnr)[:, None, None, None]
  return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def test_the_target_of_a_bfloat16_network_is_computed_in_float32_to_1e_minus_5(mixture):
  n, count = 512, 256
  z, cond, w, _ = mixture.draw(count)
  i = jnp.asarray(np.random.default_rng(0).integers(1, n + 1, count), jnp.float32)
  outputs = []

  def teacher(z, logsnr, cond, w):
    v = core_guidance.guided(mixture.v_fn)(z, logsnr, cond, w)
    outputs.append(np.asarray(v).astype(ml_dtypes.bfloat16))
    return jnp.asarray(outputs[-1], jnp.float32)

  found = progressive.target(teacher, z, i, n, cond, w, COSINE, 'deterministic')
  b = np.arctan(np.exp(-10.0))
  a = np.arctan(np.exp(10.0)) - b
  t, m, s = ((np.float64(i) - j) / n for j in (0.0, 0.5, 1.0))
  phi_t, phi_m, phi_s = (np.where(u > 0, a * u + b, 0.0)[:, None, None, None] for u in (t, m, s))
  v0, v1, z = (np.asarray(o).astype(np.float64) for o in (*outputs, z))
  d1, d2 = phi_t - phi_m, phi_m - phi_s
  # Two rotations, then the v of the single rotation that equals both.
  z_m = np.cos(d1) * z - np.sin(d1) * v0
  z_s = np.cos(d2) * z_m - np.sin(d2) * v1
  expected = (np.cos(d1 + d2) * z - z_s) / np.sin(d1 + d2)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dropped_labels_and_only_those_reach_the_teacher_being_trained_as_null(mixture):
  batch, _, key = batch_of(mixture, 2000)
  seen = []

  def student(z, logsnr, cond, w):
    seen.append((np.asarray(cond['label']), np.asarray(w)))
    return z

  teacher_stage.loss(student, None, batch, key, noise=COSINE, weight='snr_trunc', p_uncond=0.25)
  label, w = seen[0]
  assert abs((label == -1).mean() - 0.25) < 0.04  # four standard deviations
  kept = label != -1
  np.testing.assert_array_equal(label[kept], np.asarray(batch['cond']['label'])[kept])
  np.testing.assert_array_equal(w, 0.0)


def test_the_teacher_learns_v_of_the_very_noise_it_was_shown(mixture):
  # A student that computes v from z and the known x has zero loss.
  batch, _, key = batch_of(mixture)

  def student(z, logsnr, cond, w):
    alpha, sigma = (jnp.asarray(a, jnp.float32) for a in _alpha_sigma64(logsnr))
    return alpha * (z - alpha * batch['x']) / sigma - sigma * batch['x']

  loss = teacher_stage.loss(
    student, None, batch, key, noise=COSINE, weight='snr_plus_one', p_uncond=0.1
  )
  np.testing.assert_allclose(loss, 0.0, atol=1e-5)


@pytest.mark.parametrize('stage', ['guidance', 'progressive'])
def test_rows_do_not_see_each_other_and_noise_belongs_to_its_place(mixture, stage):
  batch, _, key = batch_of(mixture)

  def loss(batch):
    if stage == 'guidance':
      return guidance.loss(
        lambda z, *_: 0.3 * z, core_guidance.halves(mixture.v_fn), batch, key,
        noise=COSINE, weight='snr', w_min=0.0, w_max=4.0, ws_per_pass=2,
      )  # fmt: skip
    return progressive.loss(
      lambda z, *_: 0.3 * z, mixture.v_fn, batch, key, num_steps=jnp.int32(4),
      noise=COSINE, sampler='deterministic', weight='snr', w_min=0.0, w_max=4.0,
    )  # fmt: skip

  whole = loss(batch)
  part = loss(jax.tree.map(lambda a: a[3:7], batch))
  np.testing.assert_allclose(whole[3:7], part, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('project', [None, projections.clip])
def test_states_on_the_trajectory_are_where_the_teachers_sampler_passes(mixture, project):
  _, cond, w, key = mixture.draw(B)
  eps = jax.random.normal(key, (B, *mixture.shape))
  teacher = core_guidance.guided(mixture.v_fn)
  passed = []

  def watched(z, *rest):
    passed.append(np.asarray(z))
    return teacher(z, *rest)

  with jax.disable_jit():
    ddim.sample(watched, eps, cond, w, 8, COSINE, project)
  t = jnp.asarray(np.resize([1.0, 0.75, 0.5, 0.125], B), jnp.float32)
  found = draw.trajectory(teacher, eps, cond, w, t, 1 / 8, COSINE, project)
  for row, i in enumerate(np.resize([0, 2, 4, 7], B)):
    np.testing.assert_allclose(found[row], passed[i][row], atol=2e-4)
