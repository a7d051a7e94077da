"""Every value out of its limits gets one line that names the field, the value and the remedy."""

import re

import changed_config
import pytest

from gdistill import errors
from gdistill.recipe import reading

changed = changed_config.changed


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('teacher__lr', -1, 'above 0'),
    ('guidance__lr', 0, 'above 0'),
    ('teacher__batch_size', 0, 'at least 1'),
    ('teacher__batch_size', -8, 'at least 1'),
    (
      'teacher__accumulation', 3,
      'teacher.batch_size=64 must be divisible by teacher.accumulation=3',
    ),
    ('progressive__steps', 0, 'at least 1'),
    ('progressive__last_steps', 0, 'at least 1'),
    ('progressive__last_lr', 0.0, 'must be above 0'),
    ('guidance__w_power', -1.0, 'from 0 to 8'),
    ('progressive__w_power', 9.0, 'from 0 to 8'),
    ('progressive__clip_x_hat', False, 'must be True with guidance.clip_x_hat=True'),
    ('teacher__warmup', 10**6, 'teacher.steps'),
    ('teacher__ema', 1.0, 'below 1'),
    ('teacher__ema', -0.1, 'at least 0'),
    ('teacher__beta2', 1.0, 'below 1'),
    ('teacher__grad_clip', 0, 'above 0'),
    ('teacher__weight_decay', -1, 'at least 0'),
    ('seed', -1, '2**32'),
    ('seed', 2**64, '2**32'),
    ('train__substeps', 7, 'divide teacher.steps'),
    ('train__checkpoint_every', 0, 'at least 1'),
    ('train__max_to_keep', 0, 'at least 1'),
    ('train__stall_seconds', 0.5, 'at least 1, or 0 for no watchdog'),
    ('train__max_skipped_percent', 0.0, 'above 0 and at most 100'),
    ('progressive__start_steps', 100, 'power of two'),
    ('progressive__end_steps', 128, 'power of two'),
    ('guidance__w_min', 5.0, 'must not be above guidance.w_max'),
    ('guidance__w_min', -1.0, 'at least 0'),
    ('guidance__w_max', 1e39, 'must be at most 1000'),
    ('evaluation__ws', (0.0, 1e39), 'guidance strengths from 0 to 1000'),
    ('teacher__p_uncond', 0.0, 'above 0: only dropped labels train the null condition'),
    ('noise__logsnr_min', 20.0, 'below noise.logsnr_max'),
    ('model__groups', 5, 'must divide the width 32 and all other widths of the network: [32, 32'),
    ('model__heads', 5, 'must divide the width 32 of a layer'),
    ('model__head_dim', 4, 'model.heads=1 and model.head_dim=4: one of the two must be a number'),
    ('model__heads', None, 'model.heads=None and model.head_dim=None: one of the two must be'),
    ('model__multipliers', (), 'every resolution'),
    ('model__multipliers', (1, 1, 1, 1, 1), 'divisible by 16'),
    (
      'model__attention_resolutions', (5,),
      'contains 5, and the network has the resolutions [8, 4]; choose from these',
    ),
    ('model__dropout', 1.0, 'below 1'),
    ('mesh', {'data': -1, 'fsdp': -1}, 'both be -1'),
    ('mesh__data', 0, 'at least 1, or -1 to use all remaining devices'),
    ('stages', ('guidance', 'teacher'), 'must be one of'),
    ('stages', ('progressive',), 'must name the folder'),
    ('stages', (), 'progressive; or, with encoder=True, ()'),
    ('latents__text', 'text', 'needs latents.autoencoder'),
    ('latents__batch_size', 0, 'from 1 to'),
    ('latents__shard_size', 2**20, 'from 1 to'),
    ('latents__text_length', -1, 'from 0 to'),
    ('latents__cache', 'gs://b/c', 'must be a local path'),
    ('latents__autoencoder', 's3://b/c', 'must be a local path'),
    ('latents__autoencoder', 'data/vae', "data.name='digits' has grey pictures, which latents"),
    ('model__time', 'index', "must be 'phi' with noise.name='cosine'"),
    ('model__context', 'text', "must be 'none' with model.network='unet'"),
    ('model__context_dim', 8, "0 with model.context='none'"),
    (
      'model__extra_channels', 5,
      'must be 0, or 2 for inpainting: 1 for the mask and model.image_channels=1 for the masked',
    ),
    ('latents__masks', 0, 'from 1 to'),
    ('model__epsilon', 0.0, 'above 0'),
    ('noise__beta_start', 0.0, 'above 0 and below 1'),
    ('noise__zero_terminal_snr', True, "must be False with noise.name='cosine'"),
    ('model__guided_channels', 2, 'from 0, which means all, to model.image_channels=1'),
    ('model__guided_channels', -1, 'from 0, which means all, to'),
    ('evaluation__ws', (), 'must list'),
    ('data__held_out', 1.0, 'below 1'),
    ('data__held_out', 0.0, 'above 0: digits has no held-out split'),
    ('data__threads', 0, 'from 1 to 256'),
    ('mesh__slices', 0, 'at least 1'),
    ('evaluation__quick_images', 3, 'from 4 to'),
    ('evaluation__full_images', 2**31, 'from 4 to 2147483647'),
    ('evaluation__real_images', 3, 'from 4 to'),
    ('evaluation__bank', -1, 'from 0 to'),
    ('evaluation__num_steps', (10**12,), 'from 1 to 100000'),
    ('mesh__cpu_devices', 0, 'from 1 to 64'),
  ],
)  # fmt: skip
def test_wrong_values_are_named_with_their_remedy(field, value, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)) as e:
    reading.from_config(changed(**{field: value}))
  line = str(e.value)
  assert '\n' not in line
  assert field.split('__')[-1] in line


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('latents__text', '', "must name the folder of the text encoder with model.context='text'"),
    ('latents__autoencoder', '', 'needs latents.autoencoder'),
    ('latents__template', 'a photo', 'must contain {} once'),
    (
      'guidance__clip_x_hat', True,
      'must be False with latents.autoencoder: latents have no range to clip x_hat to',
    ),
    ('progressive__clip_x_hat', True, 'must be False with latents.autoencoder'),
    (
      'progressive__start_steps', 1024,
      "at most 512 with noise.name='scaled_linear', a schedule without noise levels below",
    ),
    (
      'evaluation__full_reference_steps', 1001,
      "from 1 to 1000 with noise.name='scaled_linear', a schedule of 1000 times",
    ),
    ('evaluation__quick_reference_steps', 3000, 'from 1 to 1000 with noise.name'),
    ('evaluation__num_steps', (1, 2000), 'from 1 to 1000 with noise.name'),
    ('model__context_length', 0, "at least 1 with model.context='text'"),
    ('model__context', 'class', "must be empty with model.context='class'"),
    ('model__transformer_depth', 0, 'at least 1'),
    (
      'model__image_size', 60,
      'divisible by 8: a network with 4 multipliers halves the image 3 times',
    ),
    (
      'data__name', 'tfds_captions',
      "data.dataset='' must name a data set of TensorFlow Datasets with data.name='tfds_captions'",
    ),
    (
      'data__path', '',
      "must name the folder or the files of the data with data.name='webdataset'",
    ),
    ('data__path', 's3://b/{0..9}.tar', 'must be a local path'),
    ('noise__beta_end', 1.0, 'above 0 and below 1'),
  ],
)  # fmt: skip
def test_wrong_values_in_latent_space_are_named_too(field, value, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)) as e:
    reading.from_config(changed(changed_config.SD, **{field: value}))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(('key', 'value'), [('clip_x_hat', True), ('w_power', 2.0)])
def test_the_naive_baseline_refuses_what_its_guided_students_cannot_bear(key, value):
  given = changed(stages=('teacher', 'progressive'))
  given['progressive'].update(clip_x_hat=False, w_power=0.0)
  reading.from_config(given)
  given['progressive'][key] = value
  with pytest.raises(errors.ConfigError, match=f'progressive.{key}={value} must be'):
    reading.from_config(given)


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ({'stages': ()}, "initial='' must name the folder of a finished round, because stages is em"),
    ({'stages': ('progressive',)}, 'because stages begins with progressive'),
    (
      {'stages': ('teacher',)},
      "encoder=True needs a round of stage one, and stages=('teacher',) does not contain 'guidance",
    ),
    (
      {
        'stages': ('teacher', 'progressive'), 'progressive__w_power': 0.0,
        'progressive__clip_x_hat': False,
      },
      "and stages=('teacher', 'progressive') does not contain 'guidance'; add 'guidance' to stages "
      'or set encoder=False',
    ),
    ({'model__predict': 'x'}, "model.predict='x' must be 'v', 'eps' or 'flow' with encoder=True"),
    (
      {'stages': ('teacher', 'guidance'), 'progressive__clip_x_hat': False},
      'progressive.clip_x_hat=False must be True with guidance.clip_x_hat=True',
    ),
    (
      {'stages': (), 'initial': 'a', 'progressive__w_power': 9.0},
      'progressive.w_power=9.0 must be from 0 to 8',
    ),
  ],
)  # fmt: skip
def test_encoders_that_have_nothing_to_learn_from_are_refused(given, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)) as e:
    reading.from_config(changed(encoder=True, **given))
  assert '\n' not in str(e.value)


def test_a_schedule_that_ends_at_pure_noise_is_for_networks_that_predict_v_or_x():
  noise = {'name': 'squared_cosine', 'zero_terminal_snr': True}
  words = "model.predict='eps' must be 'v', 'x' or 'flow' with noise.zero_terminal_snr=True"
  with pytest.raises(errors.ConfigError, match=re.escape(words)):
    reading.from_config(changed(noise=noise, model__predict='eps'))
  for predict in ('v', 'x'):
    assert reading.from_config(changed(noise=noise, model__predict=predict)).noise.zero_terminal_snr
