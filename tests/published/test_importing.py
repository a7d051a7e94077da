"""Published teachers become rounds that runs start from, or are refused by the array's name."""

import re

import imported
import numpy as np
import published
import pytest

from gdistill import errors
from gdistill.cli import config_file
from gdistill.convert import dit
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.models import latent_unet
from gdistill.published import cin256
from gdistill.published import importing
from gdistill.published import model_settings
from gdistill.recipe import reading
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


@pytest.mark.parametrize(
  ('spoil', 'name'),
  [
    (np.nan, 'blocks.0.attn.proj.weight'),
    (np.inf, 'final_layer.linear.bias'),
  ],
)
def test_weights_that_are_not_finite_are_the_sources_fault(spoil, name, tmp_path):
  state = dit.state_from(imported.dit_params(), 'original', 4)
  state[name].reshape(-1)[3] = spoil
  file = imported.save(tmp_path / 'a.safetensors', state)
  with pytest.raises(errors.DataError, match=rf'^{re.escape(file)}: {name} is not finite'):
    importing.run(
      file, storage.path(tmp_path / 'round'), kind='dit', **imported.with_autoencoder(tmp_path)
    )


@pytest.mark.parametrize(
  ('config', 'fields', 'noise'),
  [
    ('stable_diffusion.py', latent_unet.SD1, published.SD_NOISE),
    ('stable_diffusion.py:sd2', latent_unet.SD2, published.SD_NOISE),
    ('imagenet256_latent.py', latent_unet.CIN256, cin256.NOISE),
  ],
)
def test_the_configs_of_imported_teachers_are_of_what_is_imported(config, fields, noise):
  net = latent_unet.LatentUNet(**fields)
  fields = unet2d.settings_from(unet2d.config_from(net, 64), fields.get('num_classes', 0))
  settings = model_settings.of_latent_unet(fields, 64, 'eps')
  card = {
    'stage': 'teacher', 'p_uncond': None, 'null': 'trained', 'num_steps': 0, 'takes_w': False,
    'sampler': 'any',
    'model': reading.to_dict(settings), 'noise': reading.to_dict(noise), 'guided': True,
    'w_min': 0.0, 'w_max': 0.0,
  }  # fmt: skip
  given = config_file.load(f'configs/{config}', ["--config.initial='somewhere'"])
  given['latents'].update(autoencoder='a')
  run_checks.initial(assemble.Run(reading.from_config(given)), card)


@pytest.mark.parametrize(
  ('kind', 'change', 'words'),
  [
    (
      'adm64',
      {'surplus': (1,), 'out.2.bias': None, 'time_embed.2.weight': None},
      r'2 missing: time_embed.2.weight \(64, 64\), out.2.bias \(6,\); '
      r'1 not expected: surplus \(1,\)$',
    ),
    (
      'adm64',
      {'out.2.bias': (7,), 'middle_block.1.qkv.weight': (5, 3, 1)},
      r'2 of another shape: out.2.bias \(7,\) for \(6,\), middle_block.1.qkv.weight \(5, 3\) for '
      r'\(192, 64\)$',
    ),
    ('adm64', {'label_emb.weight': (4, 64)}, r'label_emb.weight \(4, 64\) for \(5, 64\)$'),
    (
      'dit',
      {'surplus': (1,), 'blocks.1.mlp.fc2.bias': None, 't_embedder.mlp.0.bias': (7,)},
      r'1 missing: blocks.1.mlp.fc2.bias \(64,\); 1 not expected: surplus \(1,\); '
      r'1 of another shape: t_embedder.mlp.0.bias \(7,\) for \(64,\)$',
    ),
    ('dit', {'blocks.0.attn.qkv.weight': (5, 3)}, r'attn.qkv.weight \(5, 3\) for \(192, 64\)$'),
    (
      'dit',
      {'x_embedder.proj.weight': (5, 3), 'blocks.0.attn.proj.bias': None},
      r'1 missing: blocks.0.attn.proj.bias; 1 of another shape: x_embedder.proj.weight \(5, 3\) '
      r'for \(4 n, channels, patch, patch\)$',
    ),
    ('dit', {'pos_embed': (16, 64)}, "'pos_embed' holds other positions"),
  ],
)
def test_arrays_that_do_not_fit_are_named(kind, change, words, tmp_path, monkeypatch):
  imported.small_adm(monkeypatch)
  state = published.adm_state(8, 'new')[0] if kind == 'adm64' else dit.state_from(
    imported.dit_params(), 'original', 4
  )  # fmt: skip
  state |= {name: np.zeros(shape, np.float32) for name, shape in change.items() if shape}
  state = {name: a for name, a in state.items() if change.get(name, 1) is not None}
  source = imported.save(tmp_path / 'odd.safetensors', state)
  with pytest.raises(errors.ConfigError, match=rf'^{re.escape(source)}: .*{words}'):
    importing.run(source, storage.path(tmp_path / 'round'), kind=kind,
                  autoencoder=str(tmp_path) if kind == 'dit' else '')  # fmt: skip
  assert not finished_rounds.is_finished(tmp_path / 'round')
