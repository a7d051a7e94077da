"""Weights have a digest of everything in them, and are refused if they are not finite."""

import shutil

import numpy as np
import published
import pytest
import safetensors.numpy

from gdistill import errors
from gdistill.published import source_files
from gdistill.published import teachers

pytestmark = pytest.mark.full


def test_the_digest_sees_names_types_shapes_and_numbers():
  state = {'a': np.zeros(2, np.float32), 'b': np.ones((1, 2), np.float32)}
  others = (
    {**state, 'c': np.zeros(0)}, {**state, 'a': np.zeros(2, np.int32)},
    {**state, 'b': np.ones((2, 1), np.float32)}, {**state, 'a': np.array([0, 1e-45], np.float32)},
  )  # fmt: skip
  found = {source_files.digest(s) for s in (state, *others)}
  assert len(found) == 5 and source_files.digest(dict(reversed(state.items()))) in found


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return published.stable_diffusion(tmp_path_factory.mktemp('published') / 'sd')


@pytest.mark.parametrize(
  ('file', 'array', 'words'),
  [
    ('unet/diffusion_pytorch_model', 'conv_out.bias', r'\S+/unet/\S+: conv_out.bias is'),
    (
      'vae/diffusion_pytorch_model',
      'decoder.conv_in.bias',
      r"\S+'s autoencoder: decoder.conv_in.b",
    ),
    ('text_encoder/model', 'text_model.final_layer_norm.bias', r'\S+: \S*final_layer_norm.bias is'),
  ],
)
def test_weights_that_are_not_finite_are_refused_by_name(whole, tmp_path, file, array, words):
  shutil.copytree(whole, tmp_path / 'sd')
  file = tmp_path / 'sd' / f'{file}.safetensors'
  state = safetensors.numpy.load_file(file)
  state[array][2] = np.nan
  safetensors.numpy.save_file(state, file)
  with pytest.raises(errors.DataError, match=f'^{words}.* not finite'):
    teachers.read(str(tmp_path / 'sd'))
