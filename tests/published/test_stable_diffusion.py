"""A folder of Stable Diffusion is read, or refused with the file and field that are wrong."""

import json
import re
import shutil

import numpy as np
import published
import pytest
import safetensors.numpy

from gdistill import errors
from gdistill.published import teachers

pytestmark = pytest.mark.full


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return published.stable_diffusion(tmp_path_factory.mktemp('published') / 'sd')


def edited(file, **changes):
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def odd_arrays(folder):
  file = folder / 'unet' / published.WEIGHTS
  state = safetensors.numpy.load_file(file)
  del state['conv_out.bias']
  state['conv_in.bias'] = np.zeros(7, np.float32)
  safetensors.numpy.save_file({**state, 'surplus': np.ones(1)}, file)


def torch_alone(folder):
  (folder / 'unet' / published.WEIGHTS).rename(folder / 'unet' / 'diffusion_pytorch_model.bin')


@pytest.mark.parametrize(
  ('spoil', 'error', 'words'),
  [
    (odd_arrays, errors.ConfigError,
     r'^\S+/unet: .*1 missing: conv_out.bias .* 1 not expected: surplus \(1,\); '
     r'1 of another shape: conv_in.bias \(7,\) for \(32,\)'),
    (torch_alone, errors.ConfigError,
     r"unet/diffusion_pytorch_model.bin is one of torch's files.* gdistill convert checkpoint "
     r'--source=\S+\.bin --out=\S+\.safetensors'),
    (lambda f: (f / 'unet' / published.WEIGHTS).unlink(), errors.DataError,
     r'no \.safetensors file; put diffusion_pytorch_model'),
    (lambda f: (f / 'scheduler' / 'scheduler_config.json').unlink(), errors.DataError,
     r'scheduler_config\.json cannot be read'),
    (lambda f: (f / 'unet' / 'config.json').write_text('{'), errors.DataError, 'is damaged'),
    (lambda f: (f / 'unet' / 'config.json').write_text('[]'), errors.DataError, 'no JSON object'),
    (lambda f: edited(f / 'unet' / 'config.json', time_cond_proj_dim=16), errors.ConfigError,
     'takes w already, so it is a student'),
    (lambda f: edited(f / 'unet' / 'config.json', cross_attention_dim=40), errors.ConfigError,
     "text embeddings of 40 channels, and the text encoder's have 32"),
    (lambda f: shutil.rmtree(f / 'vae'), errors.DataError, 'has no vae/, the autoencoder of'),
  ],
)  # fmt: skip
def test_a_folder_of_stable_diffusions_that_is_not_whole_is_refused(
  whole, tmp_path, spoil, error, words
):
  shutil.copytree(whole, tmp_path / 'sd')
  spoil(tmp_path / 'sd')
  with pytest.raises(error, match=words):
    teachers.read(str(tmp_path / 'sd'))


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('sample_size', [8, 4], r'sample_size=\[8, 4\] must be a whole number of at least 1, or a l'),
    ('sample_size', 0, 'sample_size=0 must be a whole number'),
    ('sample_size', '8', "sample_size='8' must be a whole number"),
    ('sample_size', 9, 'sample_size=9 must be divisible by 2: 2 levels halve the sides 1 times'),
    ('attention_head_dim', None, r'attention_head_dim is \(None, None\): it must be numbers of'),
    ('attention_head_dim', 0, r'attention_head_dim is \(0, 0\): it must be numbers of heads'),
    ('block_out_channels', None, 'block_out_channels is None: it must be a list of whole numbers'),
    ('block_out_channels', [32, '64'], r"block_out_channels is \[32, '64'\]: it must be a list of"),
    ('down_block_types', None, 'down_block_types is None: it must be a list'),
    ('up_block_types', 7, 'up_block_types is 7: it must be a list'),
    ('in_channels', None, 'in_channels is None: it must be a whole number of at least 1'),
    ('layers_per_block', True, 'layers_per_block is True: it must be one whole number'),
    ('cross_attention_dim', 0, 'cross_attention_dim is 0: it must be one whole number'),
    ('norm_eps', None, 'norm_eps is None: it must be a number above 0'),
    ('norm_eps', float('nan'), 'norm_eps is nan: it must be a number above 0'),
    ('dropout', 'none', "dropout is 'none': it must be a number of at least 0"),
    ('use_linear_projection', 3, 'use_linear_projection is 3: it must be true or false'),
    ('time_embedding_dim', 'x', "time_embedding_dim is 'x': it must be null or a whole number"),
    ('norm_num_groups', 5, 'model.groups=5 must divide the width 32'),  # as the recipe says it
  ],
)  # fmt: skip
def test_settings_of_a_network_that_make_no_sense_are_refused_in_a_line(
  whole, tmp_path, field, value, words
):
  shutil.copytree(whole, tmp_path / 'sd')
  file = tmp_path / 'sd' / 'unet' / 'config.json'
  edited(file, **{field: value})
  with pytest.raises(errors.ConfigError, match=f'^{re.escape(str(file))}: {words}'):
    teachers.read(str(tmp_path / 'sd'))


def test_images_of_a_size_in_a_list_are_read_with_text_from_elsewhere(whole, tmp_path):
  shutil.copytree(whole, tmp_path / 'sd')
  for name in ('text_encoder', 'tokenizer'):
    shutil.rmtree(tmp_path / 'sd' / name)
  edited(tmp_path / 'sd' / 'unet' / 'config.json', sample_size=[8, 8])
  found, of_whole = teachers.read(str(tmp_path / 'sd'), text=str(whole)), teachers.read(str(whole))
  assert found.kind == 'stable_diffusion' and found.settings == of_whole.settings
  assert found.text.digest == of_whole.text.digest
  np.testing.assert_array_equal(found.params['null_text'], of_whole.params['null_text'])


def test_files_that_only_some_programs_load_are_named(whole, tmp_path, capsys):
  shutil.copytree(whole, tmp_path / 'sd')
  teachers.read(str(tmp_path / 'sd'))
  assert 'passed over' not in capsys.readouterr().err
  for name in ('learned_embeds.safetensors', 'pytorch_lora_weights.bin'):
    (tmp_path / 'sd' / name).write_bytes(b'weights')
  teachers.read(str(tmp_path / 'sd'))
  told = capsys.readouterr().err
  assert 'learned_embeds.safetensors is passed over: it holds the embedding of' in told
  assert 'pytorch_lora_weights.bin is passed over: it holds LoRA weights' in told
