"""Latent diffusion's ImageNet network is read from its own file and from a folder of diffusers."""

import json
import re

import imported
import jax
import numpy as np
import published
import pytest

from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.frozen import networks as frozen_networks
from gdistill.models import latent_unet
from gdistill.published import source_files
from gdistill.recipe import settings as recipes

pytestmark = pytest.mark.full

SMALL_CIN256 = dict(
  channels=(32, 64), num_blocks=1, attention=(False, True), heads=(1, 1), context='class',
  context_dim=24, num_classes=1000, out_channels=3,
)  # fmt: skip
BETAS = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2  # of latent diffusion


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


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
  folder = imported.as_round(
    imported.save(tmp_path / 'a' / 'model.safetensors', whole, 'mit'), tmp_path
  )
  jax.tree.map(np.testing.assert_array_equal, folder.params, unet2d.params_from(state, net))
  jax.tree.map(
    np.testing.assert_array_equal, frozen_networks.read_frozen(folder).autoencoder.params, vq.params
  )
  about = folder.card['imported']
  assert about == {
    'kind': 'cin256', 'null': 'trained', 'digest': source_files.digest(whole), 'licence': 'mit',
    'null_rule': 'row 1000 of the class table', 'head_order': 'q, k, v apart', 'epsilon': 1e-5,
    'source': 'model.safetensors',
  }  # fmt: skip
  assert folder.card['predict'] == 'eps' and folder.card['licence'] == 'mit'
  assert folder.noise == recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
  assert len(folder.card['class_names']) == 1000 and folder.settings.image_size == 64
  imported.assert_close(imported.drawn(folder), imported.one_step(folder, BETAS))


@pytest.mark.parametrize(
  ('scale', 'betas', 'taken', 'words'),
  [
    (
      0.18215,
      {},
      1.0,
      r'\S+/vqvae/config.json: scaling_factor=0.18215 is not taken: diffusers wri',
    ),
    (0.18215, dict(beta_end=0.012), 0.18215, 'scaling_factor=0.18215 is taken: the network is rea'),
    (0.3, {}, 0.3, 'scaling_factor=0.3 is taken'),
    (1.0, {}, 1.0, ''),
    (None, {}, 1.0, ''),
  ],
)
def test_the_scale_that_diffusers_writes_for_every_codebook_is_not_latent_diffusions(
  scale, betas, taken, words, tmp_path, monkeypatch, capsys
):
  net, state, vq = cin256(monkeypatch)
  source = tmp_path / 'cin'
  published.put(source / 'unet', unet2d.config_from(net, 64), state)
  autoencoders.write(source / 'vqvae', vq)
  config = json.loads((source / 'vqvae' / 'config.json').read_text()) | {'scaling_factor': scale}
  (source / 'vqvae' / 'config.json').write_text(json.dumps(config))
  (source / 'scheduler').mkdir()
  (source / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(dict(
    _class_name='DDIMScheduler', beta_schedule='scaled_linear', beta_start=0.0015, beta_end=0.0195,
    clip_sample=False, timestep_spacing='trailing',
  ) | betas))  # fmt: skip
  folder = imported.as_round(source, tmp_path)
  said = capsys.readouterr().err
  assert frozen_networks.read_frozen(folder).autoencoder.scale == taken
  assert folder.card['latents']['autoencoder'].endswith(f'-{taken:g}-0')
  assert said.count('note: ') == bool(words) and re.search(words, said), said


def test_latent_diffusion_is_read_by_diffusers_names_from_a_folder(tmp_path, monkeypatch):
  net, state, vq = cin256(monkeypatch)
  table = state.pop(unet2d.CLASSES)
  source = tmp_path / 'cin'
  published.put(source / 'unet', unet2d.config_from(net, 64), state)
  imported.save(source / 'class_embedder' / published.WEIGHTS, {'embedding.weight': table})
  autoencoders.write(source / 'vqvae', vq)
  (source / 'scheduler').mkdir()
  (source / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(dict(
    _class_name='DDIMScheduler', beta_schedule='scaled_linear', beta_start=0.0015, beta_end=0.0195,
    clip_sample=False,
  )))  # fmt: skip
  folder = imported.as_round(source, tmp_path)
  expected = unet2d.params_from({**state, unet2d.CLASSES: table}, net)
  jax.tree.map(np.testing.assert_array_equal, folder.params, expected)
  assert folder.card['imported']['kind'] == 'cin256' and folder.card['licence'] == 'not stated'
  assert folder.noise == recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
  assert folder.settings.attention_resolutions == (32,) and folder.settings.channels == 32
