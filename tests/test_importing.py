"""Published teachers become rounds: read back, sampled from, guided as their kind is guided."""

import json
import pathlib

import jax
import numpy as np
import published
import pytest
import safetensors.numpy

from gdistill import checkpoints
from gdistill import encode
from gdistill import errors
from gdistill import importing
from gdistill import model
from gdistill import pipeline
from gdistill import recipe as recipes
from gdistill import sampling
from gdistill import storage
from gdistill import teachers
from gdistill.cli import edge
from gdistill.convert import adm
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.convert import unet2d
from gdistill.core import schedule
from gdistill.models import latent_unet
from gdistill.samplers import noise as image_noise

SMALL_CIN256 = dict(
  channels=(32, 64), num_blocks=1, attention=(False, True), heads=(1, 1), context='class',
  context_dim=24, num_classes=1000, out_channels=3,
)  # fmt: skip
SEEDS, LABELS, W = np.array([3, 11]), np.array([4, 1]), 1.5
LINEAR = np.linspace(1e-4, 0.02, 1000)  # the betas of DDPM
LATENT = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2  # and of latent diffusion


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


def save(file, state, licence=''):
  file.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(state, file)
  if licence:
    (file.parent / 'README.md').write_text(f'---\nlanguage: en\nlicense: {licence}\n---\n')
  return str(file)


def imported(source, tmp_path, **given):
  card = importing.run(str(source), storage.path(tmp_path / 'round'), **given)
  folder = model.read_folder(tmp_path / 'round')
  assert folder.card == card
  return folder


def start(folder):
  return image_noise.start(image_noise.image_keys(SEEDS), model.image_shape(folder.settings))


def outputs(folder, logsnr, scale=1.0):
  """What the network says at t = 1, of z_1 times `scale`: with its labels, and without."""
  net, w = folder.net, np.zeros(2, np.float32)
  level = np.full(2, logsnr, np.float32)
  said = jax.jit(net.apply)
  null = folder.params if folder.null_params is None else folder.null_params
  return tuple(
    np.asarray(said({'params': params}, start(folder) * scale, level, {'label': label}, w))
    for params, label in ((folder.params, LABELS), (null, np.full(2, -1)))
  )


def drawn(folder, w=W, num_steps=1):
  sampler = sampling.Sampler(folder, 'ddim', 2)
  pixels, x = sampler.draw_both(SEEDS, LABELS, np.full(2, w), num_steps)
  assert pixels.dtype == np.uint8 and np.asarray(pixels).std() > 1
  return np.asarray(x)


def one_step(folder, betas, w=W):
  """x_hat at t = 1 of eps_c + w (eps_c - eps_null), from the betas."""
  abar = np.prod(1.0 - betas)
  cond, null = outputs(folder, np.log(abar / (1.0 - abar)))
  assert np.linalg.norm(cond - null) > 0.05 * np.linalg.norm(cond)
  eps = (1.0 + w) * cond - w * null
  return (np.asarray(start(folder)) - np.sqrt(1.0 - abar) * eps) / np.sqrt(abar)


def close(found, expected):
  assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def cin256(monkeypatch):
  """Arrays of a small network by diffusers' names, and its autoencoder's."""
  monkeypatch.setattr(latent_unet, 'CIN256', SMALL_CIN256)
  net = latent_unet.LatentUNet(**SMALL_CIN256)
  state = published.random_state(unet2d.state_shapes(net))
  return net, state, published.autoencoder('vq', 3, 32, 32)


def test_latent_diffusion_is_read_by_its_own_names_from_one_file(tmp_path, monkeypatch):
  net, state, vq = cin256(monkeypatch)
  whole = {f'model.diffusion_model.{o}': state[name] for o, name in unet2d.ldm_names(net).items()}
  of_vq = autoencoders.state_from(vq.net, vq.params)
  whole |= {f'first_stage_model.{name}': a for name, a in of_vq.items()}
  whole |= {unet2d.CLASSES: state[unet2d.CLASSES], 'betas': np.ones(3, np.float32)}
  folder = imported(save(tmp_path / 'a' / 'model.safetensors', whole, 'mit'), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, folder.params, unet2d.params_from(state, net))
  jax.tree.map(
    np.testing.assert_array_equal, encode.read_frozen(folder).autoencoder.params, vq.params
  )
  about = folder.card['imported']
  assert about == {
    'kind': 'cin256', 'null': 'trained', 'digest': teachers.digest(whole), 'licence': 'mit',
    'null_rule': 'row 1000 of the class table', 'head_order': 'q, k, v apart', 'epsilon': 1e-5,
    'source': 'model.safetensors',
  }  # fmt: skip
  assert folder.card['predict'] == 'eps' and folder.card['licence'] == 'mit'
  assert folder.noise == recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
  assert len(folder.card['class_names']) == 1000 and folder.settings.image_size == 64
  close(drawn(folder), one_step(folder, LATENT))


def test_latent_diffusion_is_read_by_diffusers_names_from_a_folder(tmp_path, monkeypatch):
  net, state, vq = cin256(monkeypatch)
  table = state.pop(unet2d.CLASSES)
  source = tmp_path / 'cin'
  published.put(source / 'unet', unet2d.config_from(net, 64), state)
  save(source / 'class_embedder' / published.WEIGHTS, {'embedding.weight': table})
  autoencoders.write(source / 'vqvae', vq)
  (source / 'scheduler').mkdir()
  (source / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(dict(
    _class_name='DDIMScheduler', beta_schedule='scaled_linear', beta_start=0.0015, beta_end=0.0195,
    clip_sample=False,
  )))  # fmt: skip
  folder = imported(source, tmp_path)
  expected = unet2d.params_from({**state, unet2d.CLASSES: table}, net)
  jax.tree.map(np.testing.assert_array_equal, folder.params, expected)
  assert folder.card['imported']['kind'] == 'cin256' and folder.card['licence'] == 'not stated'
  assert folder.noise == recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
  assert folder.settings.attention_resolutions == (32,) and folder.settings.channels == 32


def of_dit(learned_sigma=True):
  settings = recipes.Model(**{
    **published.LATENT, 'network': 'dit', 'channels': 64, 'multipliers': (1,), 'groups': 1,
    'attention_resolutions': (), 'emb_channels': 64, 'heads': 1, 'num_blocks': 2,
    'num_classes': 5, 'learned_sigma': learned_sigma,
  })  # fmt: skip
  return published.params_of(settings, published.SD_NOISE)


def with_autoencoder(tmp_path):
  autoencoders.write(tmp_path / 'vae', published.autoencoder())
  return {'autoencoder': str(tmp_path / 'vae')}


def test_dit_is_told_by_its_names_and_guided_by_its_own_null_row(tmp_path):
  params = of_dit()
  source = save(tmp_path / 'dit.safetensors', dit.state_from(params, 'original', 4), 'cc-by-nc-4.0')
  folder = imported(source, tmp_path, **with_autoencoder(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  about = folder.card['imported']
  assert about['kind'] == 'dit' and about['null_rule'] == 'row 5 of the label table'
  assert about['licence'] == 'cc-by-nc-4.0' and about['head_order'] == 'q, k, v in thirds'
  assert about['epsilon'] == 1e-6 and folder.settings.freq_shift == 0.0
  assert folder.noise == recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02)
  assert folder.settings.learned_sigma and folder.settings.num_classes == 5
  close(drawn(folder), one_step(folder, LINEAR))


def test_dit_is_read_from_diffusers_folder_whose_time_features_are_its_own(tmp_path):
  params = of_dit()
  source = tmp_path / 'pipeline'
  published.put(source / 'transformer', dict(sample_size=8), dit.state_from(params, 'diffusers', 4))
  autoencoders.write(source / 'vae', published.autoencoder())
  folder = imported(source, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  assert folder.settings.freq_shift == 1.0 and folder.settings.image_size == 8


def test_sit_is_read_where_it_is_said_so_and_predicts_a_velocity(tmp_path):
  params = of_dit()
  source = save(tmp_path / 'sit.safetensors', dit.state_from(params, 'original', 4))
  folder = imported(source, tmp_path, kind='sit', **with_autoencoder(tmp_path))
  assert folder.card['predict'] == 'flow' and folder.settings.time == 'linear'
  logsnr = -20.0  # of the cosine schedule at t = 1
  alpha, sigma = (float(a) for a in schedule.alpha_sigma(np.float32(logsnr)))
  cond, null = outputs(folder, logsnr, 1.0 / (alpha + sigma))
  u = (1.0 + W) * cond - W * null
  y, t = np.asarray(start(folder)) / (alpha + sigma), alpha / (alpha + sigma)
  close(drawn(folder), y + (1.0 - t) * u)


def small_adm(monkeypatch, kind='adm64'):
  _, _, order, noise = teachers._ADM[kind]
  monkeypatch.setitem(teachers._ADM, kind, (published.SMALL_ADM, 8, order, noise))


def test_adm_is_guided_by_the_unconditional_network_beside_it(tmp_path, monkeypatch):
  small_adm(monkeypatch, 'adm256')
  state, params = published.adm_state(8, 'legacy')
  other, null_params = published.adm_state(8, 'legacy', seed=1)
  del other['label_emb.weight']
  source = save(tmp_path / 'cond.safetensors', state, 'mit')
  null = save(tmp_path / 'uncond.safetensors', other)
  folder = imported(source, tmp_path, kind='adm256', null=null)
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  null_params['label']['kernel'] = np.zeros((5, 64), np.float32)
  jax.tree.map(np.testing.assert_array_equal, folder.null_params, null_params)
  about = folder.card['imported']
  assert about['null_rule'] == 'another network' and about['null_digest'] == teachers.digest(other)
  assert about['head_order'] == 'q, k, v of each head in turn' and about['epsilon'] == 1e-5
  assert folder.card['null'] == 'network' and folder.card['p_uncond'] == 0.0
  close(drawn(folder), np.clip(one_step(folder, LINEAR), -1.0, 1.0))


def test_adm_alone_has_no_null_condition_and_a_stage_one_is_refused(tmp_path, monkeypatch):
  small_adm(monkeypatch)
  state, params = published.adm_state(8, 'new')
  folder = imported(save(tmp_path / 'a.safetensors', state), tmp_path, kind='adm64')
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  assert folder.card['null'] == 'none' and folder.noise.name == 'squared_cosine'
  assert folder.card['imported']['head_order'] == 'q, k, v in thirds'
  with pytest.raises(errors.ConfigError, match=r'no null condition .* \(--null\)'):
    pipeline.check_initial(recipe_from(folder), folder.card)
  # With one it would be taken.
  pipeline.check_initial(recipe_from(folder), {**folder.card, 'null': 'network'})


def recipe_from(folder):
  config = edge.load_config('configs/digits.py:tiny', [])
  config.update(stages=('guidance', 'progressive'), initial=str(folder.path))
  config['model'] = {**folder.card['model'], 'dropout': 0.0, 'dtype': 'bfloat16'}
  config['noise'] = dict(folder.card['noise'])
  return recipes.from_config(config)


@pytest.mark.parametrize(
  ('config', 'fields', 'noise'),
  [
    ('stable_diffusion.py', latent_unet.SD1, published.SD_NOISE),
    ('stable_diffusion.py:sd2', latent_unet.SD2, published.SD_NOISE),
    ('imagenet256_latent.py', latent_unet.CIN256, teachers._LDM_NOISE),
  ],
)
def test_the_configs_of_imported_teachers_are_of_what_is_imported(config, fields, noise):
  net = latent_unet.LatentUNet(**fields)
  fields = unet2d.settings_from(unet2d.config_from(net, 64), fields.get('num_classes', 0))
  settings = teachers.latent_settings(fields, 64, 'eps')
  card = {
    'stage': 'teacher', 'p_uncond': 0.1, 'num_steps': 0, 'takes_w': False, 'sampler': 'any',
    'model': recipes.to_dict(settings), 'noise': recipes.to_dict(noise), 'guided': True,
    'w_min': 0.0, 'w_max': 0.0,
  }  # fmt: skip
  given = edge.load_config(f'configs/{config}', ["--config.initial='somewhere'"])
  given['latents'].update(autoencoder='a')
  pipeline.check_initial(recipes.from_config(given), card)


@pytest.mark.parametrize(
  ('kind', 'change', 'words'),
  [
    ('adm64', dict(surplus=(1,)), "'surplus' is no array of ADM"),
    ('adm64', {'out.2.bias': None}, "'out.2.bias' is missing"),
    ('adm64', {'out.2.bias': (7,)}, r'conv_out/bias is \(7,\) and not \(6,\)'),
    ('adm64', {'middle_block.1.qkv.weight': (5, 3, 1)}, 'of another shape than this network has'),
    ('adm64', {'label_emb.weight': (4, 64)}, r'label/kernel is \(4, 64\) and not \(5, 64\)'),
    ('dit', dict(surplus=(1,)), "'surplus' is no array of DiT or SiT"),
    ('dit', {'blocks.1.mlp.fc2.bias': None}, "'blocks.1.mlp.fc2.bias' is missing"),
    ('dit', {'blocks.1.mlp.fc2.bias': (7,)}, r'block1/mlp1/bias is \(7,\) and not \(64,\)'),
    ('dit', {'blocks.0.attn.qkv.weight': (5, 3)}, 'of another shape than this network has'),
  ],
)
def test_arrays_that_do_not_fit_are_named(kind, change, words, tmp_path, monkeypatch):
  small_adm(monkeypatch)
  state = published.adm_state(8, 'new')[0] if kind == 'adm64' else dit.state_from(
    of_dit(), 'original', 4
  )  # fmt: skip
  state |= {name: np.zeros(shape, np.float32) for name, shape in change.items() if shape}
  state = {name: a for name, a in state.items() if change.get(name, 1) is not None}
  source = save(tmp_path / 'odd.safetensors', state)
  with pytest.raises(errors.ConfigError, match=words):
    importing.run(source, storage.path(tmp_path / 'round'), kind=kind,
                  autoencoder=str(tmp_path) if kind == 'dit' else '')  # fmt: skip
  assert not checkpoints.is_finished(tmp_path / 'round')


@pytest.mark.parametrize(('fields', 'size', 'kind'),
                         [(adm.ADM_64, 64, 'adm64'), (adm.ADM_256, 256, 'adm256')])  # fmt: skip
def test_adm_is_told_by_its_names(fields, size, kind, tmp_path):
  entries = len(fields['multipliers']) * (fields['num_blocks'] + 1)  # and one that ends no level
  names = [f'input_blocks.{i}.0.in_layers.0.weight' for i in range(1, entries)]
  assert entries == {64: 16, 256: 18}[size]
  source = save(tmp_path / 'adm.safetensors', {n: np.zeros(1, np.float32) for n in names})
  assert teachers._kind(pathlib.Path(source)) == kind
