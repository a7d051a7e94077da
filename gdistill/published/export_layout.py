"""Layout of an exported folder: gdistill's own files, and diffusers' class for each part."""

from typing import Any

from gdistill.frozen import networks as frozen_networks
from gdistill.rounds import folder as folders

OWN = 'gdistill'  # a subfolder that diffusers ignores
CARD = f'{OWN}/card.json'
REST = f'{OWN}/rest.safetensors'
# Kind of autoencoder -> its class in diffusers.
VAE_CLASSES = {'kl': 'AutoencoderKL', 'vq': 'VQModel', 'tiny': 'AutoencoderTiny'}


def pipeline_class(folder: folders.Folder, frozen: frozen_networks.Frozen) -> str:
  """Returns the class of the pipeline, 'DiffusionPipeline' if none draws with this network."""
  if frozen.text is None:
    return 'DiffusionPipeline'
  return f'StableDiffusion{"Inpaint" if folder.settings.extra_channels else ""}Pipeline'


def model_index(folder: folders.Folder, frozen: frozen_networks.Frozen) -> dict[str, Any]:
  """Returns model_index.json: the pipeline, and [library, class] of every part."""
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
