"""A run's settings as frozen dataclasses: every key of a config, with its type and default."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Data:
  """Where images come from, and which of them training never sees."""

  name: Literal['digits', 'folder', 'records', 'tfds', 'captions', 'webdataset', 'tfds_captions']
  held_out: float  # share of the examples, the same for every class; 0: held_out_split
  path: str = ''  # the folder or archive; of 'tfds' its data_dir, '' for the usual one
  dataset: str = ''  # of 'tfds': which one; other sources do not look at it
  split: str = 'train'
  held_out_split: str = 'test'
  flip: bool = False  # left and right, half of the time
  workers: int = 0  # processes that read; 0 reads in threads of this one
  threads: int = 4  # of each process that reads
  prefetch: int = 2  # batches read ahead


@dataclasses.dataclass(frozen=True)
class Latents:
  """Latent space: what encodes pictures and captions, once and for all, and where that is kept.

  The image_size and image_channels of the model are then those of a latent.
  """

  autoencoder: str = ''  # its folder or files; '' trains on pixels
  text: str = ''  # the text encoder's folder, or the package that carries it
  text_length: int = 0  # tokens of a caption that are kept; 0: as many as the encoder takes
  template: str = 'a photo of a {}'  # captions of pictures that have a class alone
  cache: str = ''  # folder of what was encoded; '' is WORKDIR/latents
  batch_size: int = 64
  shard_size: int = 1024
  skip_corrupt: bool = False  # leaves out pictures that cannot be read
  masks: int = 4  # of an inpainting network: random masks of a flip, each encoded with its picture


@dataclasses.dataclass(frozen=True)
class Noise:
  """The noise schedule; the limits belong to 'cosine', the betas to the discrete ones.

  'squared_cosine' is the discrete one of a thousand betas that follow a cosine; it has no settings.
  """

  name: Literal['cosine', 'linear_beta', 'scaled_linear', 'squared_cosine']
  logsnr_min: float = -20.0
  logsnr_max: float = 20.0
  beta_start: float = 0.00085
  beta_end: float = 0.012


@dataclasses.dataclass(frozen=True)
class Model:
  """The network: models/unet.py, latent_unet.py and dit.py say what the keys mean.

  What has a default is of latent and of published networks. `channels` times `multipliers` are the
  widths of a U-Net; a DiT has `channels` wide blocks, `num_blocks` of them, and no multipliers.
  """

  image_size: int
  image_channels: int
  num_classes: int
  channels: int
  multipliers: tuple[int, ...]
  num_blocks: int
  attention_resolutions: tuple[int, ...]
  emb_channels: int
  heads: int | None
  head_dim: int | None
  groups: int
  dropout: float  # of the teacher; distillation uses none
  w_features: int
  w_scale: float
  dtype: Literal['float32', 'bfloat16']
  predict: Literal['x', 'eps', 'v', 'flow']
  network: Literal['unet', 'latent_unet', 'dit'] = 'unet'
  context: Literal['none', 'class', 'text'] = 'none'  # of 'latent_unet'
  context_dim: int = 0
  context_length: int = 0
  transformer_depth: int = 1
  linear_projection: bool = False
  extra_channels: int = 0  # image_channels + 1: a mask, and a masked picture, for inpainting
  patch: int = 2  # of 'dit'
  time: Literal['phi', 'index', 'linear'] = 'phi'  # what the network's time features are of
  epsilon: float = 1e-6
  freq_shift: float = 1.0
  cos_first: bool = False
  learned_sigma: bool = False


@dataclasses.dataclass(frozen=True)
class Training:
  """What every stage's optimisation is told. The learning rate decays within the round."""

  steps: int
  batch_size: int
  accumulation: int
  lr: float
  anneal: bool  # linear to zero over the round; otherwise constant
  warmup: int
  ema: float  # 0: none, the parameters themselves are handed on
  beta1: float
  beta2: float
  adam_eps: float
  weight_decay: float
  grad_clip: float
  weight: Literal['snr', 'snr_trunc', 'snr_plus_one']


@dataclasses.dataclass(frozen=True)
class Teacher(Training):
  p_uncond: float  # how often a label is dropped


@dataclasses.dataclass(frozen=True)
class Guidance(Training):
  w_min: float
  w_max: float  # equal to w_min: a single-w student, which takes no w
  ws_per_pass: int
  state: Literal['data', 'trajectory']
  trajectory_steps: int
  one_batch: bool  # conditional and null pass as one batch of 2B; pays on accelerators
  w_power: float = 0.0  # the loss is divided by (1 + w)^w_power; 0 is the paper
  clip_x_hat: bool = False  # compare x_hat as samplers clip it; False is the paper


@dataclasses.dataclass(frozen=True)
class Progressive(Training):
  start_steps: int
  end_steps: int
  sampler: Literal['deterministic', 'stochastic']
  state: Literal['data', 'trajectory']
  last_steps: int  # training steps of the rounds for 2 and 1 sampling steps
  last_lr: float  # and their learning rate: they have far to go, the others only a little
  w_power: float = 0.0  # as in guidance
  clip_x_hat: bool = False  # as in guidance, and the teacher's two steps clip too


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: batch rows over all of them, large parameters over fsdp, what only the optimiser
  needs over fsdp and data. One of data and fsdp may be -1: what is left of a slice.
  """

  data: int
  fsdp: int
  slices: int = 1  # TPU slices, or whatever a slow network joins
  cpu_devices: int = 1  # how many devices to make of a CPU, whatever its number of cores


@dataclasses.dataclass(frozen=True)
class Train:
  """The loop itself."""

  substeps: int  # updates per dispatch on accelerators; a CPU always runs one
  checkpoint_every: int
  max_to_keep: int
  log_every: int
  max_skipped_in_a_row: int
  max_skipped_percent: float
  remat: Literal['none', 'blocks'] = 'none'  # 'blocks': a fifth more work, far less memory
  stall_seconds: float = 300.0  # without an update, then it leaves with 134; 0: never


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The w x N grid, in two sizes."""

  ws: tuple[float, ...]
  num_steps: tuple[int, ...]
  quick_images: int
  quick_reference_steps: int
  full_images: int
  full_reference_steps: int
  batch_size: int
  real_images: int = 10_000  # training and held-out images to measure with, at most so many each
  extractor: Literal['classifier', 'inception', 'lite0', 'clip_b32', 'clip_l14'] = 'classifier'
  weights: str = ''  # of a public extractor: its file, '' for where gdistill convert puts it
  keep_images: int = 2_000  # pictures of a cell that are kept
  bank: int = 10_000  # pictures of a cell whose features have neighbours: precision, recall, KID


STAGES = ('teacher', 'guidance', 'progressive')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One run: which stages, from what, and every number they need.

  `stages` is a consecutive part of teacher, guidance, progressive, or (teacher, progressive) for
  the naive baseline; what does not begin with a teacher begins from the round in `initial`. A
  teacher may: it then starts from that teacher's parameters, which may predict something else.
  `encoder` adds a second ladder from stage one's student, from data to noise, with the settings of
  `progressive`; it may then be all there is, with no stages.
  """

  seed: int
  stages: tuple[str, ...]
  initial: str
  data: Data
  noise: Noise
  model: Model
  teacher: Teacher
  guidance: Guidance
  progressive: Progressive
  mesh: Mesh
  train: Train
  evaluation: Evaluation
  latents: Latents = Latents()
  encoder: bool = False  # an encoder ladder beside the decoder's, always deterministic

  def settings(self, stage: str) -> Training:
    """What the rounds of a stage are trained with: an encoder ladder has the decoder's."""
    return getattr(self, 'progressive' if stage == 'encoder' else stage)

  @property
  def sections(self) -> tuple[str, ...]:
    """Where the settings of all rounds are."""
    ladder = ('progressive',) if self.encoder and 'progressive' not in self.stages else ()
    return self.stages + ladder

  @property
  def latent(self) -> bool:
    """Whether the networks see latents, not pixels."""
    return bool(self.latents.autoencoder)

  @property
  def inpainting(self) -> bool:
    """Whether the networks are shown a mask and what it leaves of a picture."""
    return self.model.extra_channels > 0

  @property
  def naive(self) -> bool:
    """Halve the unguided network and guide afterwards."""
    return self.stages == ('teacher', 'progressive')

  @property
  def single_w(self) -> bool:
    return self.guidance.w_min == self.guidance.w_max

  @property
  def takes_w(self) -> bool:
    """Whether the students have an input for w."""
    return not self.naive and not self.single_w
