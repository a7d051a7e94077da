"""Names published networks, by diffusers' classes or by their arrays, that cannot be imported."""

import re
from collections.abc import Collection, Mapping
from typing import Any

SUPPORTED = (
  'supported are Stable Diffusion 1 and 2 (also for inpainting) as folders of diffusers, DiT, SiT, '
  "latent diffusion's ImageNet network cin256, and ADM for 64 and 256 pixels"
)
# Pipeline of diffusers whose networks gdistill imports -> kind of network; '' if several are
# possible. The pipelines of Stable Diffusion in this table differ only in how they sample.
PIPELINES = {
  **dict.fromkeys(
    ('StableDiffusionPipeline', 'StableDiffusionInpaintPipeline', 'StableDiffusionImg2ImgPipeline',
     'StableDiffusionInpaintPipelineLegacy', 'StableDiffusionSAGPipeline',
     'StableDiffusionPAGPipeline', 'StableDiffusionPAGImg2ImgPipeline',
     'StableDiffusionPAGInpaintPipeline', 'StableDiffusionPanoramaPipeline',
     'StableDiffusionAttendAndExcitePipeline', 'CycleDiffusionPipeline'),
    'stable_diffusion',
  ),
  'DiTPipeline': 'dit',
  'DiffusionPipeline': '',
}  # fmt: skip
# Beginning of a pipeline's or a network's class in diffusers -> name of the network. The longest
# beginning counts.
_CLASSES = {
  'StableDiffusionXL': 'Stable Diffusion XL',
  'StableDiffusionXLInstructPix2Pix': 'InstructPix2Pix with Stable Diffusion XL',
  'StableDiffusion3': 'Stable Diffusion 3', 'SD3': 'Stable Diffusion 3',
  'StableDiffusionInstructPix2Pix': 'InstructPix2Pix, which edits a picture',
  'StableDiffusionDepth2Img': 'Stable Diffusion 2 with a depth map',
  'StableDiffusionUpscale': 'an upscaler', 'StableDiffusionLatentUpscale': 'an upscaler',
  'StableDiffusionImageVariation': 'variations of a picture, without text',
  'StableDiffusionControlNet': 'Stable Diffusion with a ControlNet',
  'StableDiffusionAdapter': 'Stable Diffusion with an adapter',
  'StableDiffusionGLIGEN': 'Stable Diffusion with boxes', 'StableDiffusionLDM3D': 'LDM3D',
  'FlaxStableDiffusion': 'Stable Diffusion as Flax weights',
  'OnnxStableDiffusion': 'Stable Diffusion as ONNX', 'StableDiffusionOnnx': 'as ONNX',
  'StableUnCLIP': 'Stable unCLIP', 'UnCLIP': 'unCLIP', 'AltDiffusion': 'AltDiffusion',
  'StableCascade': 'Stable Cascade', 'Wuerstchen': 'Würstchen', 'PaintByExample': 'an inpainter',
  'Flux': 'Flux', 'PixArt': 'PixArt', 'Kandinsky': 'Kandinsky', 'IF': 'DeepFloyd IF',
  'DDPM': 'DDPM, an unconditional network on pixels', 'UNet2DModel': 'a U-Net without text: DDPM',
  'DDIM': 'DDPM, an unconditional network on pixels', 'PNDM': 'DDPM, an unconditional network',
  'ScoreSde': 'a score network', 'KarrasVe': 'a score network', 'NCSN': 'a score network',
  'LatentConsistencyModel': 'LCM, which is a student and no teacher',
  'ConsistencyModel': 'a consistency model, which is a student and no teacher',
  'LDMSuperResolution': "latent diffusion's upscaler", 'LDMPipeline': 'latent diffusion, no text',
  'LDMTextToImage': "latent diffusion's text-to-image network", 'VQDiffusion': 'VQ diffusion',
  'Marigold': 'depth from a picture', 'HunyuanDiT': 'Hunyuan-DiT', 'Sana': 'Sana',
  'Lumina': 'Lumina', 'AuraFlow': 'AuraFlow', 'QwenImage': 'Qwen-Image', 'Kolors': 'Kolors',
  'CogView': 'CogView', 'Chroma': 'Chroma', 'OmniGen': 'OmniGen', 'HiDream': 'HiDream',
  **dict.fromkeys(
    ('StableVideoDiffusion', 'TextToVideo', 'VideoToVideo', 'AnimateDiff', 'CogVideoX', 'Wan',
     'HunyuanVideo', 'HunyuanSkyreels', 'LTX', 'Mochi', 'Allegro', 'Latte', 'I2VGen', 'SkyReels',
     'Cosmos', 'EasyAnimate', 'ConsisID', 'PIA', 'SanaVideo', 'Helios', 'UNet3D', 'UNetMotion',
     'UNetSpatioTemporal', 'MotifVideo', 'FramePack'), 'video',
  ),
  **dict.fromkeys(
    ('AudioLDM', 'MusicLDM', 'AudioDiffusion', 'StableAudio', 'DanceDiffusion', 'AceStep',
     'SpectrogramDiffusion', 'UNet1D', 'LongCatAudio'), 'audio',
  ),
}  # fmt: skip
# Rows (name of a network, strings that all occur in the network's array names), tried from top to
# bottom. A string that begins with '^' must be the beginning of an array's name.
_ARRAYS = (
  ('a LoRA, which is no network of its own', ('lora_down.weight',)),
  ('a LoRA, which is no network of its own', ('.lora_A.',)),
  ('a LoRA, which is no network of its own', ('.lora.down.',)),
  ('a ControlNet', ('^control_model.',)),
  ('a ControlNet', ('controlnet_cond_embedding.',)),
  ('motion modules for video', ('motion_modules.',)),
  ('a network for video', ('.time_stack.',)),
  ('a network for video', ('.temp_convs.',)),
  ('Hunyuan Video', ('double_blocks.0.img_attn_qkv.',)),
  ('Stable Diffusion XL', ('conditioner.embedders.',)),
  ('Stable Diffusion XL', ('add_embedding.linear_1.',)),
  ('Stable Diffusion 3', ('joint_blocks.0.x_block.',)),
  ('Stable Diffusion 3', ('transformer_blocks.0.attn.add_q_proj.', 'pos_embed.proj.')),
  ('Flux', ('double_blocks.0.img_attn.',)),
  ('Flux', ('single_transformer_blocks.0.',)),
  ('PixArt', ('y_embedder.y_proj.', 't_block.1.')),
  ('PixArt', ('adaln_single.', 'caption_projection.')),
  ('Kandinsky', ('add_embedding.image_',)),
  ('Stable Cascade', ('clip_txt_pooled_mapper.',)),
  ('Stable Diffusion 2 with a depth map', ('^depth_model.',)),
  ('an upscaler', ('^low_scale_model.',)),
  ('LCM, which is a student and no teacher', ('time_embedding.cond_proj.',)),
  ('Stable unCLIP or the U-Net of Stable Diffusion XL', ('diffusion_model.label_emb.0.0.',)),
  ("latent diffusion's text-to-image network", ('^cond_stage_model.transformer.token_emb.',)),
  ('a network for audio', ('^first_stage_model.vocoder.',)),
  ("ADM's classifier", ('^out.2.positional_embedding', '^input_blocks.0.0.')),
)
# As _ARRAYS, for files with all networks of a Stable Diffusion, by the names of latent diffusion.
_WHOLE_FILES = (
  ('Stable Diffusion 2', ('^cond_stage_model.model.transformer.resblocks.',)),
  ('Stable Diffusion 1', ('^cond_stage_model.transformer.text_model.',)),
  ('Stable Diffusion 1', ('^cond_stage_model.transformer.embeddings.',)),
)
# As _ARRAYS, for files with one network of several.
_PARTS = (
  ('the U-Net of a Stable Diffusion', ('^down_blocks.0.resnets.0.time_emb_proj.', '.attn2.')),
  ('an autoencoder', ('^encoder.down_blocks.0.', '^decoder.')),
  ('an autoencoder', ('^encoder.down.0.', '^decoder.')),
  ('a text encoder', ('^text_model.encoder.layers.0.',)),
)
# Number of input blocks of ADM -> name of the network; 16 and 18 are those of ADM 64 and ADM 256.
_ADM = {15: 'ADM for 128 pixels', 21: 'ADM for 512 pixels'}


def of_class(name: str) -> str:
  """Returns the name of the network of a class of diffusers, or '' if the class is not known."""
  return _CLASSES.get(max((b for b in _CLASSES if name.startswith(b)), key=len, default=''), '')


def of_config(config: Mapping[str, Any]) -> str:
  """Returns the name of a network that cannot be imported, from diffusers' config.json, or ''.

  `config` is the content of config.json of a U-Net or a transformer.
  """
  name = config.get('_class_name')
  name = name if isinstance(name, str) else ''
  if name != 'UNet2DConditionModel':
    return of_class(name)
  added, embedded = config.get('addition_embed_type'), config.get('class_embed_type')
  if added == 'text_time':
    return 'Stable Diffusion XL'
  if added == 'text':
    return 'DeepFloyd IF'
  if added in ('image', 'text_image', 'image_hint'):
    return 'Kandinsky'
  if embedded in ('projection', 'simple_projection'):
    return 'Stable unCLIP' if embedded == 'projection' else 'AudioLDM'
  by_channels = {5: 'Depth2Img', 7: 'Upscale', 8: 'InstructPix2Pix'}
  beyond = by_channels.get(config.get('in_channels', 4)) if _makes_latents(config) else None
  return of_class(f'StableDiffusion{beyond}') if beyond else ''


def _makes_latents(config: Mapping[str, Any]) -> bool:
  return config.get('out_channels', 4) == 4


def of_arrays(names: Collection[str]) -> str:
  """Returns the name of a network that cannot be imported, from its arrays' names, or ''."""
  found = _first(_ARRAYS, names)
  if found or '.attn2.' in ''.join(names):
    return found
  if _first((('DDPM', ('^down_blocks.0.resnets.0.time_emb_proj.',)),), names):
    return 'DDPM, an unconditional network'
  blocks = [int(m[1]) for n in names if (m := re.match(r'input_blocks\.(\d+)\.', n))]
  return _ADM.get(max(blocks, default=-1) + 1, '')


def of_whole_file(names: Collection[str]) -> str:
  """Returns the name of the Stable Diffusion whose networks are all in one file, or ''."""
  return _first(_WHOLE_FILES, names)


def of_part(names: Collection[str]) -> str:
  """Returns the name of the network if the arrays are only a part of a folder of diffusers."""
  return _first(_PARTS, names)


def _first(rows: tuple, names: Collection[str]) -> str:
  text = '^'.join(['', *names])
  return next((name for name, marks in rows if all(mark in text for mark in marks)), '')
