"""Reads Stable Diffusion 1 or 2, also for inpainting, as a teacher from a diffusers folder."""

import pathlib

import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.convert import text as texts
from gdistill.process import progress
from gdistill.published import model_settings
from gdistill.published import schedulers
from gdistill.published import source_files
from gdistill.published import teacher

# Files that people put beside a pipeline: only a program that is told to loads them.
_BESIDE = {
  'learned_embeds*': 'the embedding of a new token, of textual inversion',
  'pytorch_lora_weights*': 'LoRA weights',
}


def read(
  path: pathlib.Path, kind: str, *, null: str, autoencoder: str, text: str
) -> teacher.Teacher:
  """Returns the Stable Diffusion network at `path` as a teacher.

  `path` is a folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/. `autoencoder`, if
  not '', is a folder that is read instead of vae/. `text`, if not '', is a folder that is read
  instead of text_encoder/ and tokenizer/. The teacher's null condition is the embedding of the text
  '', so `null`, the file of an unconditional network, is not used.
  """
  config, state = source_files.read_component(path / 'unet')
  noise, predict = schedulers.read(path)
  if config.get('time_cond_proj_dim'):
    raise errors.ConfigError(
      f'{path}/unet: time_cond_proj_dim={config["time_cond_proj_dim"]}: this network takes w '
      'already, so it is a student and cannot be a teacher; give as --source a network that takes '
      'no w, or a folder that `gdistill export` wrote, with the subfolder gdistill/'
    )
  for pattern, meaning in _BESIDE.items():
    for file in sorted(path.glob(pattern))[:1]:
      progress.say(
        f'note: {file.name} is passed over: it holds {meaning}; to import it too, load it into the '
        'pipeline with diffusers (fuse LoRA weights) and save the pipeline with save_pretrained'
      )
  config_file = path / 'unet' / 'config.json'
  with source_files.errors_begin_with(config_file):
    fields = unet2d.settings_from(config)
  encoder = texts.read(text or str(path))
  fields['context_length'] = encoder.length
  if encoder.width != fields['context_dim']:
    raise errors.ConfigError(
      f'{path}/unet attends to text embeddings of {fields["context_dim"]} channels, and the text '
      f"encoder's have {encoder.width} channels; give the path of the network's own text encoder "
      'as --text'
    )
  with source_files.errors_begin_with(config_file):
    image_size = model_settings.image_size(config, 64)
    settings = model_settings.of_latent_unet(fields, image_size, predict)
    net = model_settings.build(settings, noise)
  with source_files.errors_begin_with(path / 'unet'):
    params = unet2d.params_from(state, net)
  ids, mask, _ = encoder.tokens([''])
  params['null_text'] = np.asarray(encoder.encode(encoder.params, ids, mask)[0], np.float32)
  frozen = autoencoders.read(autoencoder or path / 'vae')
  about = {
    'digest': source_files.digest(state),
    'null_rule': "the text ''",
    'head_order': 'q, k, v apart',
    'epsilon': settings.epsilon,
  }
  return teacher.Teacher(
    kind, settings, noise, params, 'trained', about, autoencoder=frozen, text=encoder
  )
