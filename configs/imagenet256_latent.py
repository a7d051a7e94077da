"""Meng et al.'s ImageNet 256 experiment in latent space, from latent diffusion's published teacher.

  gdistill import --source=CIN256 --out=data/cin256
  gdistill prepare --source=IMAGENET --out=data/imagenet256 --size=256
  python -m gdistill.main --config=configs/imagenet256_latent.py --workdir=gs://BUCKET/imagenet256

CIN256 holds the network cin256-v2 in safetensors, under latent diffusion's own names or as a
diffusers folder. The run starts from the imported teacher (--config.initial). The imported VQ
autoencoder, with latents of 64x64x3, encodes the pictures once, into --config.latents.cache, a
folder that every host must be able to read.

Variants, after a colon: `v` (first fine-tunes the teacher shortly, to predict v), `tiny` (every
stage takes seconds, for tests: sizes change, never the method, and it trains its own teacher).

Hardware assumed: 32 TPU v4 chips; compiled for v4:2x4x4, stage one takes 7.6 of the 34 GB of a chip
(docs/pods.md).
Result: not run yet.

Sources: network and noise schedule are Rombach et al.'s, arXiv 2112.10752. w in [0, 14] and batch
512 are Meng et al.'s, arXiv 2210.03142, quoted from memory. Learning rates and the lengths of the
stages are our choice. The ladder starts from 512 steps, the largest power of two below the
teacher's thousand timesteps.
"""

import ml_collections

from configs import common

VARIANTS = ('', 'v', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  common.check(variant, VARIANTS)
  training = dict(  # shared by the stages; a stage below may override a value
    batch_size=512, accumulation=1, anneal=False, warmup=0, beta1=0.9, beta2=0.999, adam_eps=1e-8,
    weight_decay=0.0, grad_clip=1.0,
  )  # fmt: skip
  config = dict(
    seed=0,
    stages=('guidance', 'progressive'),
    initial='data/cin256',
    data=dict(
      name='records', path='data/imagenet256', split='train', held_out_split='validation',
      held_out=0.0, flip=True, workers=8, threads=4, prefetch=4,
    ),
    latents=dict(autoencoder='data/cin256/autoencoder', cache='data/imagenet256_latents'),
    noise=dict(name='scaled_linear', beta_start=0.0015, beta_end=0.0195),
    model=dict(
      network='latent_unet', image_size=64, image_channels=3, num_classes=1000,
      channels=192, multipliers=(1, 2, 3, 5), num_blocks=2, attention_resolutions=(32, 16, 8),
      emb_channels=768, heads=1, head_dim=None, groups=32, epsilon=1e-5, dropout=0.0,
      context='class', context_dim=512, time='index', freq_shift=0.0, cos_first=True,
      w_features=256, w_scale=1000.0, dtype='bfloat16', predict='eps',
    ),
    teacher=dict(
      training, steps=10_000, lr=1e-5, warmup=500, ema=0.9999,
      weight='snr_trunc', p_uncond=0.1,
    ),
    guidance=dict(
      training, steps=20_000, lr=5e-5, ema=0.9999, weight='snr_trunc',
      w_min=0.0, w_max=14.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=dict(
      training, steps=10_000, lr=5e-5, anneal=True, ema=0.0, weight='snr_trunc',
      start_steps=512, end_steps=1, sampler='deterministic', state='data',
      last_steps=20_000, last_lr=5e-5,  # of the rounds for 2 and 1 sampling steps
    ),
    mesh=dict(data=-1, fsdp=1),
    train=dict(
      substeps=10, checkpoint_every=1000, max_to_keep=2, log_every=100,
      max_skipped_in_a_row=20, max_skipped_percent=1.0,
    ),
    evaluation=dict(
      ws=(0.0, 1.0, 2.0, 4.0, 8.0), num_steps=(1, 2, 4, 8), batch_size=100, extractor='inception',
      quick_images=500, quick_reference_steps=128, full_images=5000, full_reference_steps=512,
    ),
  )  # fmt: skip
  common.method(config, variant)
  if variant == 'tiny':
    common.tiny(
      config, image_size=8, channels=16, multipliers=(1, 2), attention_resolutions=(4,),
      context_dim=16,
    )  # fmt: skip
    config.update(stages=('teacher', 'guidance', 'progressive'), initial='')
    config['data'].update(name='folder', workers=0, threads=1)
    config['latents'].update(cache='')
    config['evaluation'].update(extractor='classifier')
  return ml_collections.ConfigDict(config)
