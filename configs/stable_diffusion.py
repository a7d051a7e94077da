"""Meng et al.'s text-to-image experiment: Stable Diffusion 1.x to 1, 2 and 4 steps, w in [2, 14].

  gdistill import --source=STABLE_DIFFUSION --out=data/sd
  python -m gdistill.main --config=configs/stable_diffusion.py --workdir=gs://BUCKET/sd \\
    --config.data.path='data/laion/*.tar'

STABLE_DIFFUSION is a folder that diffusers saved. The run starts from the imported network
(--config.initial). The autoencoder and the text encoder beside it encode pictures and captions
once, into --config.latents.cache, a folder that every host must be able to read. Captioned
pictures come from WebDataset shards, from a folder (--config.data.name=captions) or from TensorFlow
Datasets (--config.data.name=tfds_captions). `gdistill export` writes a student as a folder that
diffusers' own StableDiffusionPipeline runs.

Variants, after a colon: `v` (first fine-tunes the teacher shortly, to predict v), `sd2` (Stable
Diffusion 2.x at 512 pixels), `ten` (a ladder through 40, 20, 10 and 5 steps), `inpainting` (from
Stable Diffusion's inpainting network, imported as data/sd_inpainting, with random masks; or from an
ordinary network, with a teacher stage first, in which the weights of the new inputs start at zero),
`tiny` (every stage takes seconds, for tests: sizes change, never the method).

Hardware assumed: 32 TPU v4 or v5e chips; compiled for v4:2x4x4, stage one takes 10.3 of the 34 GB
of a chip, and for v5e:4x8 9.9 of 17 GB (docs/pods.md). --plan --topology shows what others need.
Result: not run yet.

Sources: network and noise schedule are Rombach et al.'s, arXiv 2112.10752. w in [2, 14] is Meng et
al.'s, arXiv 2210.03142, as later papers report it. The 3,000 updates of stage one, rounds of 2,000
updates, the last ones of 20,000, and batch 512 are quoted from memory. Learning rates are our
choice. The ladder starts from 512 steps, the largest power of two below the teacher's thousand
timesteps.
"""

import ml_collections

from configs import common

VARIANTS = ('', 'v', 'sd2', 'ten', 'inpainting', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  common.check(variant, VARIANTS)
  training = dict(  # shared by the stages; a stage below may override a value
    batch_size=512, accumulation=1, anneal=False, warmup=0, beta1=0.9, beta2=0.999, adam_eps=1e-8,
    weight_decay=0.0, grad_clip=1.0,
  )  # fmt: skip
  config = dict(
    seed=0,
    stages=('guidance', 'progressive'),
    initial='data/sd',
    data=dict(
      name='webdataset', path='data/laion/*.tar', held_out=0.001, flip=False,
      workers=8, threads=4, prefetch=4,
    ),
    latents=dict(autoencoder='data/sd/autoencoder', text='data/sd', cache='data/laion_latents'),
    noise=dict(name='scaled_linear', beta_start=0.00085, beta_end=0.012),
    model=dict(
      network='latent_unet', image_size=64, image_channels=4, num_classes=1,
      channels=320, multipliers=(1, 2, 4, 4), num_blocks=2, attention_resolutions=(64, 32, 16),
      emb_channels=1280, heads=8, head_dim=None, groups=32, epsilon=1e-5, dropout=0.0,
      context='text', context_dim=768, context_length=77, time='index', freq_shift=0.0,
      cos_first=True, w_features=256, w_scale=1000.0, dtype='bfloat16', predict='eps',
    ),
    teacher=dict(
      training, steps=3000, lr=1e-5, warmup=300, ema=0.9999,
      weight='snr_trunc', p_uncond=0.1,
    ),
    guidance=dict(
      training, steps=3000, lr=5e-5, ema=0.999, weight='snr_trunc',
      w_min=2.0, w_max=14.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=dict(
      training, steps=2000, lr=5e-5, anneal=True, ema=0.0, weight='snr_trunc',
      start_steps=512, end_steps=1, sampler='deterministic', state='data',
      last_steps=20_000, last_lr=5e-5,  # of the rounds for 2 and 1 sampling steps
    ),
    mesh=dict(data=-1, fsdp=1),
    train=dict(
      substeps=10, checkpoint_every=500, max_to_keep=2, log_every=50,
      max_skipped_in_a_row=20, max_skipped_percent=1.0, remat='blocks',
    ),
    evaluation=dict(
      ws=(2.0, 6.5, 12.0), num_steps=(1, 2, 4, 8), batch_size=50, extractor='inception',
      quick_images=500, quick_reference_steps=64, full_images=5000, full_reference_steps=512,
    ),
  )  # fmt: skip
  common.method(config, variant)
  if variant == 'sd2':
    config['model'].update(heads=None, head_dim=64, context_dim=1024, linear_projection=True)
  if variant == 'ten':
    config['progressive'].update(start_steps=40, end_steps=5)
    config['evaluation'].update(num_steps=(5, 10, 20))
  if variant == 'inpainting':
    config['initial'] = 'data/sd_inpainting'
    config['latents'].update(
      autoencoder='data/sd_inpainting/autoencoder', text='data/sd_inpainting',
      cache='data/laion_masked',
    )  # fmt: skip
    config['model']['extra_channels'] = 5  # the mask, and the masked picture as 4 latent channels
  if variant == 'tiny':
    common.tiny(
      config, image_size=8, channels=16, multipliers=(1, 2), attention_resolutions=(8, 4), heads=2,
      context_dim=32, context_length=16,
    )  # fmt: skip
    config.update(stages=('teacher', 'guidance', 'progressive'), initial='')
    config['data'].update(workers=0, threads=1, held_out=0.1)
    config['latents'].update(cache='')
    config['train'].update(remat='none')
    config['evaluation'].update(ws=(2.0,), extractor='classifier')
  return ml_collections.ConfigDict(config)
