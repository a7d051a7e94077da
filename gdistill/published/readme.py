"""Builds the README.md of an exported folder: a model card with an example in Python."""

import numpy as np

from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.frozen import networks as frozen_networks
from gdistill.published import export_layout
from gdistill.rounds import classes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks

_ANY_STEPS = 50  # sampling steps in README.md's example, if the network takes any number
_EXAMPLE_W = 6.5  # w in README.md's example: diffusers' default guidance_scale 7.5 is 1 + w


def text(folder: folders.Folder, frozen: frozen_networks.Frozen, licence: str) -> str:
  """Returns the text of README.md for an exported round.

  `licence` is the licence that the user gave for the export, or '' to use the licence in card.json.
  """
  card = folder.card
  teacher, steps = card['stage'] == 'teacher', card['num_steps'] or 'any number'
  title = f'# Diffusion {"teacher" if teacher else "student"}'
  if card['num_steps']:
    title += f' for {steps} sampling step{"s" if steps > 1 else ""}'
  made = 'A teacher network, exported with gdistill.'
  if not teacher:
    made = (
      f'Distilled with gdistill (stage: {card["stage"]}) after Meng et al., "On Distillation of '
      'Guided Diffusion Models" (arXiv:2210.03142).'
    )
  licence, origin = _licence(folder, licence)
  lines = [
    '---', f'license: {licence}', 'library_name: diffusers', 'tags:', '- gdistill', '---', '',
    title, '', made, '',
    f'- Sampling steps: {steps}, with the DDIM scheduler in this folder (trailing spacing).',
    f'- Guidance: {_guidance(folder, frozen)}',
    *_classes(folder, frozen),
    f'- Licence: {licence}{origin}.',
    *(f'- Note: {note}.' for note in notes(folder, frozen)), '',
  ]  # fmt: skip
  example = _prompt_example if frozen.text is not None else _class_example
  return '\n'.join([*lines, '```python', *example(folder, frozen), '```', ''])


def _classes(folder: folders.Folder, frozen: frozen_networks.Frozen) -> list[str]:
  """Returns README.md's line on the classes and their numbers; [] for a network with prompts."""
  if frozen.text is not None:
    return []
  where = '' if not classes.names_of(folder.card) else (
    f'; `class_names` in {export_layout.CARD} lists all names by number'
  )  # fmt: skip
  return [f'- Classes: {classes.summary(folder.card)}{where}.']


def notes(folder: folders.Folder, frozen: frozen_networks.Frozen) -> list[str]:
  """Returns a list of sentences on differences between diffusers and gdistill for the round."""
  found = []
  steps = folder.card['num_steps']
  if steps and 1000 % steps:
    found.append(
      f'{steps} does not divide 1000: diffusers rounds the {steps} timesteps to whole numbers, so '
      "its images differ slightly from gdistill's"
    )
  if frozen.autoencoder is not None and getattr(frozen.autoencoder.net, 'pool', False):
    found.append('diffusers has no class for this tiny autoencoder: decode with gdistill')
  return found


def _licence(folder: folders.Folder, given: str) -> tuple[str, str]:
  """Returns (licence, end of README.md's sentence on the licence: who stated the licence)."""
  if given:
    return given, ', as stated at the export'
  if inherited := folder.card.get('licence'):
    return inherited, '' if folder.card['stage'] == 'teacher' else ', inherited from the teacher'
  return 'not stated', '; ask the publisher of the teacher'


def _guidance(folder: folders.Folder, frozen: frozen_networks.Frozen) -> str:
  """Returns README.md's sentences on how the network is guided and how a user sets w."""
  card, prompts = folder.card, frozen.text is not None
  how = 'pass `guidance_scale = 1 + w`' if prompts else 'set `w` in the example below'
  if folder.takes_w:
    found = (
      f'The network takes the guidance strength w, from {card["w_min"]:g} to {card["w_max"]:g}, as '
      f'an input: {how}. w = 0 is no guidance. A sampling step calls the network once.'
    )
    return found + (' A negative prompt has no effect.' if prompts else '')
  if folder.guided:
    return (
      'A sampling step calls the network twice, with the condition and without, and combines the '
      f'outputs with the guidance strength w: {how}. w = 0 is no guidance.'
    )
  found = f'The network was distilled at the guidance strength w = {card["w_min"]:g} and takes no '
  found += 'other w' + ('; pass `guidance_scale = 1`' if prompts else '')
  return f'{found}. A sampling step calls the network once, without further guidance.'


def _scale(folder: folders.Folder) -> float:
  """Returns the guidance_scale in README.md's example: 1 + w, for a w that the network supports."""
  if not (folder.takes_w or folder.guided):
    return 1.0
  return 1.0 + min(max(_EXAMPLE_W, folder.card['w_min']), folder.card['w_max'])


def _prompt_example(folder: folders.Folder, frozen: frozen_networks.Frozen) -> list[str]:
  """Returns the example in README.md: lines of Python that sample a picture from a prompt."""
  pipeline, steps = export_layout.pipeline_class(folder, frozen), folder.num_steps or _ANY_STEPS
  inpainting = ' image=IMAGE, mask_image=MASK,' if folder.settings.extra_channels else ''
  pictures = '; IMAGE and MASK: PIL images' if inpainting else ''
  return [
    'import diffusers', '',
    f'# FOLDER: the path of this folder, or its name on the hub{pictures}',
    f'pipe = diffusers.{pipeline}.from_pretrained(FOLDER, safety_checker=None)',
    f'images = pipe("a photo",{inpainting} num_inference_steps={steps}, '
    f'guidance_scale={_scale(folder):g}).images',
  ]  # fmt: skip


def _class_example(folder: folders.Folder, frozen: frozen_networks.Frozen) -> list[str]:
  """Returns the example in README.md: lines of Python that sample pictures of a class with DDIM.

  The example has its own loop over the steps, because diffusers has no pipeline for networks with
  classes. The loop turns noise `z` [B, C, H, W] into images, or into latents that are then decoded.
  """
  pixels = folder.settings.network == 'unet'
  given, level = ['z', 't', 'table[{}][:, None]'], []
  step = 'z = scheduler.step(output, t, z).prev_sample'
  if pixels:
    given = ['z', 'level', 'torch.zeros(len(z), 0, 1)', 'class_labels={}']
    # The example computes the timestep for the network from alphas_cumprod, because the scheduler's
    # own timestep t is right only for a cosine schedule with logsnr from -20 to 20.
    level = [
      '  abar = scheduler.alphas_cumprod[t]',
      '  level = 2000 / torch.pi * ((1 - abar) / abar).sqrt().atan() - 1',
    ]
    step = 'z = scheduler.step(output, t, z, use_clipped_model_output=True).prev_sample'
  if folder.takes_w:
    given.append('timestep_cond=features')
  call = f'unet({", ".join(given)}).sample'
  loop = ['for t in scheduler.timesteps:', *level, f'  output = {call.format("label")}']
  if folder.guided:
    no_class = f'torch.full_like(label, {folder.settings.num_classes})'
    loop += [
      f'  null = {call.format(no_class)}',
      '  output = output + w[:, None, None, None] * (output - null)',
    ]
  return [*_loading(folder, pixels), *_strength(folder), *loop, f'  {step}', *_decoding(frozen)]


def _loading(folder: folders.Folder, pixels: bool) -> list[str]:
  """Returns lines of Python that load the network, the scheduler and the table of classes.

  If `pixels` is True, the network is a pixel U-Net, and the lines load no table of classes.
  """
  noise = ', '.join(map(str, np.roll(networks.image_shape(folder.settings), 1)))
  lines = [
    'import diffusers, safetensors.torch, torch', '',
    f'# FOLDER: the path of this folder; z: standard normal noise [B, {noise}]; label: int64 [B]',
    "unet = diffusers.UNet2DConditionModel.from_pretrained(FOLDER, subfolder='unet')",
    "scheduler = diffusers.DDIMScheduler.from_pretrained(FOLDER, subfolder='scheduler')",
    f'scheduler.set_timesteps({folder.num_steps or _ANY_STEPS})',
  ]  # fmt: skip
  if pixels:
    return lines
  return [
    *lines,
    f"rest = safetensors.torch.load_file(FOLDER + '/{export_layout.REST}')",
    f"table = rest['{unet2d.CLASSES}']  # the last row is the null condition",
  ]


def _strength(folder: folders.Folder) -> list[str]:
  """Returns lines of Python that set w [B] and, if the network takes w, the features of w."""
  lines = []
  if folder.takes_w or folder.guided:
    lines.append(f'w = torch.full((len(z),), {_scale(folder) - 1.0:g})')
  if folder.takes_w:
    scale = folder.settings.w_scale
    # A pixel U-Net may have any w_scale; diffusers multiplies w by 1000.
    given = 'w' if scale == 1000.0 else f'w * ({scale!r} / 1000)'
    lines += [
      'features = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(',
      f'  None, {given}, unet.config.time_cond_proj_dim)',
    ]
  return lines


def _decoding(frozen: frozen_networks.Frozen) -> list[str]:
  """Returns lines of Python that decode latents to images.

  Returns [] if the network samples pixels, or if diffusers has no class for the autoencoder.
  """
  found = frozen.autoencoder
  if found is None or getattr(found.net, 'pool', False):
    return []
  vae, shift = export_layout.VAE_CLASSES[found.kind], f' + {found.shift:g}' if found.shift else ''
  return [
    f"vae = diffusers.{vae}.from_pretrained(FOLDER, subfolder='vae')",
    f'images = vae.decode(z / {found.scale:g}{shift}).sample  # from -1 to 1',
  ]
