"""Every wrong config gets one line that names the field, the value and the remedy."""

import copy
import re

import pytest

from gdistill import errors
from gdistill.cli import edge
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes

DIGITS = edge.load_config('configs/digits.py', [])
SD = edge.load_config('configs/stable_diffusion.py', [])


def changed(base=DIGITS, **fields):
  config = copy.deepcopy(base)
  for key, value in fields.items():
    *sections, last = key.split('__')
    here = config
    for section in sections:
      here = here.setdefault(section, {})
    here[last] = value
  return config


INF, NAN = float('inf'), float('nan')
WRONG = [
  ('teacher__lr', -1, 'above 0'),
  ('teacher__lr', NAN, 'finite'),
  ('teacher__lr', INF, 'finite'),
  ('teacher__lr', 'abc', 'finite number'),
  ('guidance__lr', 0, 'above 0'),
  ('teacher__batch_size', 0, 'at least 1'),
  ('teacher__batch_size', -8, 'at least 1'),
  ('teacher__batch_size', 12.5, 'whole number'),
  ('teacher__batch_size', True, 'whole number'),
  ('teacher__accumulation', 3, 'teacher.batch_size=64 must be divisible by teacher.accumulation=3'),
  ('progressive__steps', 0, 'at least 1'),
  ('progressive__last_steps', 0, 'at least 1'),
  ('progressive__last_lr', 0.0, 'must be above 0'),
  ('guidance__w_power', -1.0, 'from 0 to 8'),
  ('progressive__w_power', 9.0, 'from 0 to 8'),
  ('progressive__clip_x_hat', False, 'must be True where guidance.clip_x_hat is'),
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
  ('model__dtype', 'fp17', 'float32, bfloat16'),
  ('model__predict', 'score', 'x, eps, v'),
  ('progressive__sampler', 'euler', 'deterministic, stochastic'),
  ('teacher__weight', 'min_snr', 'snr_trunc'),
  ('progressive__start_steps', 100, 'power of two'),
  ('progressive__end_steps', 128, 'power of two'),
  ('guidance__w_min', 5.0, 'must not be above guidance.w_max'),
  ('guidance__w_min', -1.0, 'at least 0'),
  ('teacher__p_uncond', 0.0, 'null class'),
  ('noise__logsnr_min', 20.0, 'below noise.logsnr_max'),
  ('model__groups', 5, 'must divide the width'),
  ('model__heads', 5, 'must divide the width'),
  ('model__head_dim', 4, 'not both'),
  ('model__multipliers', (), 'every resolution'),
  ('model__multipliers', (1, 1, 1, 1, 1), 'divisible by 16'),
  ('model__attention_resolutions', (5,), 'never reached'),
  ('model__dropout', 1.0, 'below 1'),
  ('mesh', {'data': -1, 'fsdp': -1}, 'both be -1'),
  ('mesh__data', 0, 'at least 1, or -1'),
  ('stages', ('guidance', 'teacher'), 'must be one of'),
  ('stages', ('progressive',), 'must name the folder'),
  ('stages', (), 'progressive; with encoder=True also ()'),
  ('encoder', 1, 'must be True or False'),
  ('latents__text', 'text', 'needs latents.autoencoder'),
  ('latents__batch_size', 0, 'from 1 to'),
  ('latents__shard_size', 2**20, 'from 1 to'),
  ('latents__text_length', -1, 'from 0 to'),
  ('latents__cache', 'gs://b/c', 'must be a local path'),
  ('latents__autoencoder', 's3://b/c', 'must be a local path'),
  ('latents__autoencoder', 'data/vae', 'must be of coloured pictures'),
  ('model__time', 'index', "must be 'phi' with noise.name='cosine'"),
  ('model__network', 'vit', 'unet, latent_unet, dit'),
  ('model__context', 'text', "must be 'none' with model.network='unet'"),
  ('model__context_dim', 8, "0 with model.context='none'"),
  ('model__extra_channels', 5, 'must be 0, or 2 for inpainting: a mask and model.image_channels=1'),
  ('latents__masks', 0, 'from 1 to'),
  ('model__epsilon', 0.0, 'above 0'),
  ('noise__beta_start', 0.0, 'between 0 and 1'),
  ('evaluation__ws', (), 'must list'),
  ('data__name', 'imagenet', 'digits'),
  ('data__held_out', 1.0, 'below 1'),
  ('data__held_out', 0.0, 'above 0: the digits have no second split'),
  ('data__threads', 0, 'from 1 to 256'),
  ('mesh__slices', 0, 'at least 1'),
  ('evaluation__quick_images', 3, 'at least 4'),
  ('evaluation__num_steps', (10**12,), 'from 1 to 100000'),
  ('teacher__lr', 10**400, 'finite number'),
  ('mesh__cpu_devices', 0, 'from 1 to 64'),
  ('model', 3, 'must be a section'),
]


@pytest.mark.parametrize(('field', 'value', 'words'), WRONG)
def test_wrong_values_are_named_with_their_remedy(field, value, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)) as e:
    reading.from_config(changed(**{field: value}))
  line = str(e.value)
  assert '\n' not in line
  assert field.split('__')[-1] in line


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('latents__text', '', "must name the text encoder with model.context='text'"),
    ('latents__autoencoder', '', 'needs latents.autoencoder'),
    ('guidance__clip_x_hat', True, 'must be False with latents.autoencoder: latents have no range'),
    ('progressive__clip_x_hat', True, 'must be False with latents.autoencoder'),
    ('progressive__start_steps', 1024, "at most 512 with noise.name='scaled_linear'"),
    ('model__context_length', 0, "at least 1 with model.context='text'"),
    ('model__context', 'class', "must be empty with model.context='class'"),
    ('model__transformer_depth', 0, 'at least 1'),
    ('model__image_size', 60, 'divisible by 8'),
    ('data__name', 'tfds_captions', 'TensorFlow Datasets name'),
    ('data__path', '', "must be given with data.name='webdataset'"),
    ('data__path', 's3://b/{0..9}.tar', 'must be a local path'),
    ('noise__beta_end', 1.0, 'between 0 and 1'),
  ],
)
def test_wrong_values_in_latent_space_are_named_too(field, value, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)) as e:
    reading.from_config(changed(SD, **{field: value}))
  assert '\n' not in str(e.value)


def test_a_teacher_may_begin_from_another_and_an_old_config_has_no_latents():
  assert reading.from_config(changed(initial='somewhere')).initial == 'somewhere'
  old = reading.from_config(DIGITS)
  assert 'latents' not in DIGITS and old.latents == recipes.Latents() and not old.latent
  assert reading.from_config(SD).latent


def test_where_frozen_networks_and_latents_lie_may_change_but_not_what_they_make():
  base = reading.from_config(SD)
  for key, value in (('autoencoder', 'a'), ('text', 'b'), ('cache', 'c'), ('batch_size', 8)):
    assert identity.digest(reading.from_config(changed(SD, **{f'latents__{key}': value}))) == (
      identity.digest(base)
    )
  for key, value in (('template', 'the {}'), ('text_length', 20), ('shard_size', 8)):
    other = reading.from_config(changed(SD, **{f'latents__{key}': value}))
    assert identity.digest(other) != identity.digest(base)


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
      "encoder=True needs a student of stage one, which stages=('teacher',) has not; put guidance",
    ),
    (
      {
        'stages': ('teacher', 'progressive'), 'progressive__w_power': 0.0,
        'progressive__clip_x_hat': False,
      },
      "which stages=('teacher', 'progressive') has not; put guidance among them or set "
      'encoder=False',
    ),
    ({'model__predict': 'x'}, "model.predict='x' must be another with encoder=True"),
    (
      {'stages': ('teacher', 'guidance'), 'progressive__clip_x_hat': False},
      'progressive.clip_x_hat=False must be True where guidance.clip_x_hat is',
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


@pytest.mark.parametrize(
  ('stages', 'sections'),
  [
    ((), ('progressive',)),
    (('progressive',), ('progressive',)),
    (('guidance',), ('guidance', 'progressive')),
    (('teacher', 'guidance', 'progressive'), ('teacher', 'guidance', 'progressive')),
  ],
)
def test_an_encoder_has_the_decoders_settings(stages, sections):
  recipe = reading.from_config(changed(encoder=True, stages=stages, initial='somewhere'))
  assert recipe.sections == sections
  assert recipe.settings('encoder') is recipe.settings('progressive') is recipe.progressive
  assert recipe.settings('guidance') is recipe.guidance


def test_an_encoder_may_come_and_go_but_processes_agree_on_it():
  base, more = reading.from_config(DIGITS), reading.from_config(changed(encoder=True))
  assert not base.encoder and identity.digest(base) == identity.digest(more)
  assert identity.differences(reading.to_dict(base), reading.to_dict(more)) == []
  assert identity.digest_together(base) != identity.digest_together(more)


@pytest.mark.parametrize(
  ('section', 'key', 'hint'),
  [
    ('teacher', 'learning_rate', 'known keys|did you mean'),
    ('teacher', 'batchsize', 'did you mean teacher.batch_size'),
    ('train', 'w_max', 'did you mean guidance.w_max'),
  ],
)
def test_unknown_keys_suggest_the_nearest_or_the_right_section(section, key, hint):
  with pytest.raises(errors.ConfigError, match=hint):
    reading.from_config(changed(**{f'{section}__{key}': 1}))


def test_a_missing_key_is_named():
  config = copy.deepcopy(DIGITS)
  del config['teacher']['lr']
  with pytest.raises(errors.ConfigError, match=r'teacher\.lr is missing'):
    reading.from_config(config)


def test_the_digest_sees_what_reaches_the_parameters_and_nothing_else():
  base = reading.from_config(DIGITS)
  same = reading.from_config(changed(train__log_every=40, train__checkpoint_every=100))
  other = reading.from_config(changed(teacher__lr=1e-3))
  assert identity.digest(base) == identity.digest(same) != identity.digest(other)
  assert identity.differences(reading.to_dict(base), reading.to_dict(other)) == [
    'teacher.lr: 0.002 -> 0.001'
  ]
  assert identity.differences(reading.to_dict(base), reading.to_dict(same)) == []


def test_processes_of_one_start_agree_on_all_but_how_they_read():
  base = reading.from_config(DIGITS)
  told = identity.digest_together(base)
  reads = reading.from_config(changed(data__path='elsewhere', data__workers=3, data__threads=1))
  assert identity.digest_together(reads) == told
  for change in ({'train__log_every': 40}, {'mesh__cpu_devices': 1}, {'train__remat': 'blocks'}):
    other = reading.from_config(changed(**change))
    assert identity.digest(other) == identity.digest(base)
    assert identity.digest_together(other) != told
