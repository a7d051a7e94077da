"""The paper's text-to-image experiment: Stable Diffusion 1.x to 1, 2 and 4 steps, w in [2, 14].

  gdistill import --source=STABLE_DIFFUSION --out=data/sd
  python -m gdistill.main --config=configs/stable_diffusion.py --workdir=gs://BUCKET/sd \\
    --config.data.path='data/laion/*.tar'

STABLE_DIFFUSION is a folder as diffusers writes it. What is imported is the round that the run
begins from (--config.initial), with its autoencoder and text encoder beside it, which encode
pictures and captions once, into --config.latents.cache, which every host must see. Pictures with
captions come as WebDataset shards, or from a folder (--config.data.name=captions) or TensorFlow
Datasets (--config.data.name=tfds_captions). Exported, a student runs in diffusers' own
StableDiffusionPipeline; see `gdistill export`.

Variants, after a colon: `v` (first a short fine-tune of the teacher to predict v), `sd2`
(Stable Diffusion 2.x at 512 pixels), `ten` (a ladder through 40, 20, 10 and 5 steps), `inpainting`
(from Stable Diffusion's inpainting network, imported as data/sd_inpainting, with random masks; or
from an ordinary one, whose new inputs start at zero, with a teacher stage first), `tiny` (every
stage in seconds, for tests: sizes change, never the method).

Hardware assumed: 32 TPU v4 chips or more; --plan says what fits less. Result: not run yet.

Network and noise are Rombach et al.'s, 2112.10752. w in [2, 14] is Meng et al.'s, 2210.03142, by
its successors; stage one of 3,000 updates, rounds of 2,000, the last ones of 20,000, and batch 512
are as we recall them. Learning rates are our choice, and the ladder starts from the 512 steps that
a thousand indices can be halved to.
"""

import ml_collections

VARIANTS = ('', 'v', 'sd2', 'ten', 'inpainting', 'tiny')


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
    teacher=training(3000, 1e-5, 0.9999, 'snr_trunc', p_uncond=0.1),
    guidance=training(
      3000, 5e-5, 0.999, 'snr_trunc',
      w_min=2.0, w_max=14.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=training(
      2000, 5e-5, 0.0, 'snr_trunc',
      start_steps=512, end_steps=1, sampler='deterministic', state='data',
      last_steps=20_000, last_lr=5e-5,  # of the rounds for 2 and 1 steps
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
  config['teacher'].update(warmup=300)
  config['progressive'].update(anneal=True)
  if variant == 'v':
    config['stages'] = ('teacher', 'guidance', 'progressive')
    config['model']['predict'] = 'v'
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
    config['model']['extra_channels'] = 5  # a mask, and the latents of the masked picture
  if variant == 'tiny':
    config.update(stages=('teacher', 'guidance', 'progressive'), initial='')
    config['latents'].update(cache='')
    config['data'].update(workers=0, threads=1, held_out=0.1)
    config['model'].update(
      image_size=8, channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(8, 4),
      emb_channels=16, heads=2, groups=4, context_dim=32, context_length=16, w_features=8,
      dtype='float32',
    )  # fmt: skip
    for stage, steps in (('teacher', 6), ('guidance', 4), ('progressive', 4)):
      config[stage].update(steps=steps, batch_size=8, warmup=0)
    config['progressive'].update(last_steps=4, start_steps=4)
    config['train'].update(substeps=1, checkpoint_every=2, log_every=2, remat='none')
    config['evaluation'].update(
      ws=(2.0,), num_steps=(1, 2), batch_size=20, real_images=200, extractor='classifier',
      quick_images=20, quick_reference_steps=4, full_images=40, full_reference_steps=8,
    )  # fmt: skip
  return ml_collections.ConfigDict(config)
