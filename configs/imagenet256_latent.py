"""The paper on ImageNet 256 in latent space, from latent diffusion's published teacher.

  gdistill import --source=CIN256 --out=data/cin256
  gdistill prepare --source=IMAGENET --out=data/imagenet256 --size=256
  python -m gdistill.main --config=configs/imagenet256_latent.py --workdir=gs://BUCKET/imagenet256

CIN256 holds cin256-v2 in safetensors, in latent diffusion's own names or in diffusers' folder. Its
teacher becomes the round that the run begins from (--config.initial), and its VQ autoencoder of
64x64x3 latents encodes the pictures once, into --config.latents.cache, which every host must see.

Variants, after a colon: `v` (first a short fine-tune of the teacher to predict v), `tiny` (every
stage in seconds, for tests: sizes change, never the method; it trains its own teacher).

Hardware assumed: 32 TPU v4 chips or more. Result: not run yet.

Network and noise are Rombach et al.'s, 2112.10752; w in [0, 14] and batch 512 Meng et al.'s,
2210.03142, as we recall it. Learning rates and the lengths of stages are our choice, and the ladder
starts from the 512 steps that a thousand indices can be halved to.
"""

import ml_collections

VARIANTS = ('', 'v', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'{variant=} must be empty or one of {", ".join(VARIANTS[1:])}')

  def training(steps, lr, ema, weight, **more):
    return dict(
      steps=steps, batch_size=512, accumulation=1, lr=lr, anneal=False, warmup=0, ema=ema,
      beta1=0.9, beta2=0.999, adam_eps=1e-8, weight_decay=0.0, grad_clip=1.0, weight=weight, **more,
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
    teacher=training(10_000, 1e-5, 0.9999, 'snr_trunc', p_uncond=0.1),
    guidance=training(
      20_000, 5e-5, 0.9999, 'snr_trunc',
      w_min=0.0, w_max=14.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=training(
      10_000, 5e-5, 0.0, 'snr_trunc',
      start_steps=512, end_steps=1, sampler='deterministic', state='data',
      last_steps=20_000, last_lr=5e-5,  # of the rounds for 2 and 1 steps
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
  config['teacher'].update(warmup=500)
  config['progressive'].update(anneal=True)
  if variant == 'v':
    config['stages'] = ('teacher', 'guidance', 'progressive')
    config['model']['predict'] = 'v'
  if variant == 'tiny':
    config.update(stages=('teacher', 'guidance', 'progressive'), initial='')
    config['data'].update(name='folder', workers=0, threads=1)
    config['latents'].update(cache='')
    config['model'].update(
      image_size=8, channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,),
      emb_channels=16, groups=4, context_dim=16, w_features=8, dtype='float32',
    )  # fmt: skip
    for stage, steps in (('teacher', 6), ('guidance', 4), ('progressive', 4)):
      config[stage].update(steps=steps, batch_size=8, warmup=0)
    config['progressive'].update(last_steps=4, start_steps=4)
    config['train'].update(substeps=1, checkpoint_every=2, log_every=2)
    config['evaluation'].update(
      ws=(0.0, 2.0), num_steps=(1, 2), batch_size=20, real_images=200, extractor='classifier',
      quick_images=20, quick_reference_steps=4, full_images=40, full_reference_steps=8,
    )  # fmt: skip
  return ml_collections.ConfigDict(config)
