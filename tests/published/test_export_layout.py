"""An exported folder names the pipeline and the classes of diffusers that load its parts."""

import types

import pytest

from gdistill.published import export_layout

pytestmark = pytest.mark.full

TEXT = {'text_encoder', 'tokenizer'}


def fake(extra_channels=0, kind='', text=False):
  """A folder and its frozen networks, as far as the layout depends on them."""
  autoencoder = types.SimpleNamespace(kind=kind) if kind else None
  return (
    types.SimpleNamespace(settings=types.SimpleNamespace(extra_channels=extra_channels)),
    types.SimpleNamespace(autoencoder=autoencoder, text='an encoder' if text else None),
  )


@pytest.mark.parametrize(
  ('network', 'pipeline', 'vae', 'parts'),
  [
    (fake(), 'DiffusionPipeline', None, set()),
    (fake(kind='vq'), 'DiffusionPipeline', 'VQModel', set()),
    (fake(0, 'kl', True), 'StableDiffusionPipeline', 'AutoencoderKL', TEXT),
    (fake(5, 'kl', True), 'StableDiffusionInpaintPipeline', 'AutoencoderKL', TEXT),
  ],
)
def test_the_index_names_the_pipeline_and_the_class_of_every_part(network, pipeline, vae, parts):
  index = export_layout.model_index(*network)
  assert index['_class_name'] == pipeline == export_layout.pipeline_class(*network)
  found = {name for name, value in index.items() if isinstance(value, list) and value[0]}
  assert found == parts | {'unet', 'scheduler'} | ({'vae'} if vae else set())
  assert index.get('vae', [None, None])[1] == vae
