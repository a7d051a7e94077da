"""Paths of gdistill's own files in an exported folder, and diffusers' class of each network."""

from typing import Any

from gdistill.frozen import networks as frozen_networks
from gdistill.rounds import folder as folders

OWN = 'gdistill'  # subfolder for gdistill's own files, which diffusers does not read
CARD = f'{OWN}/card.json'
REST = f'{OWN}/rest.safetensors'
# Kind of autoencoder -> name of the autoencoder's class in diffusers.
VAE_CLASSES = {'kl': 'AutoencoderKL', 'vq': 'VQModel', 'tiny': 'AutoencoderTiny'}


def pipeline_class(folder: folders.Folder, frozen: frozen_networks.Frozen) -> str:
  """Returns the name of diffusers' pipeline class for the exported round.

  For a network without text encoder, diffusers has no pipeline, so the returned name is
  'DiffusionPipeline', a base class that cannot sample pictures.
  """
  if frozen.text is None:
    return 'DiffusionPipeline'
  return f'StableDiffusion{"Inpaint" if folder.settings.extra_channels else ""}Pipeline'


def model_index(folder: folders.Folder, frozen: frozen_networks.Frozen) -> dict[str, Any]:
  """Returns the content of model_index.json: diffusers' classes of pipeline and networks."""
  index: dict[str, Any] = {
    '_class_name': pipeline_class(folder, frozen),
    'unet': ['diffusers', 'UNet2DConditionModel'],
    'scheduler': ['diffusers', 'DDIMScheduler'],
  }
  if frozen.autoencoder is not None:
    index['vae'] = ['diffusers', VAE_CLASSES[frozen.autoencoder.kind]]
  if frozen.text is not None:
    index |= {
      'text_encoder': ['transformers', 'CLIPTextModel'],
      'tokenizer': ['transformers', 'CLIPTokenizer'],
      'safety_checker': [None, None],
      'feature_extractor': [None, None],
      'requires_safety_checker': False,
    }
  return index
