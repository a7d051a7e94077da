"""A run's settings as frozen dataclasses; docs/config.md prints the comment above each key."""

import dataclasses
from typing import Literal

from gdistill.recipe import evaluation_settings

Evaluation = evaluation_settings.Evaluation


@dataclasses.dataclass(frozen=True)
class Data:
  """The data set: where the pictures come from, and which pictures are held out of training."""

  # Kind of source: scikit-learn's digits; class folders or an archive of them; records of `gdistill
  # prepare`; labelled pictures of TensorFlow Datasets; a folder of pictures with captions;
  # WebDataset shards with captions; captioned pictures of TensorFlow Datasets.
  name: Literal['digits', 'folder', 'records', 'tfds', 'captions', 'webdataset', 'tfds_captions']
  # Share of the examples of every class that is held out of training; 0 means that the examples of
  # the split `held_out_split` are held out instead.
  held_out: float
  # Local folder, archive, or pattern of shards such as 'shards/*.tar'. For 'tfds' and
  # 'tfds_captions', the folder of prepared data sets; '' is TensorFlow Datasets' own default.
  path: str = ''
  # Name of the data set for 'tfds' and 'tfds_captions'; other sources ignore this key.
  dataset: str = ''
  # Name of the training split: a subfolder of `path`, or a split of TensorFlow Datasets. '' means
  # `path` itself, without a subfolder.
  split: str = 'train'
  # Name of the split that is held out of training; used only if `held_out` is 0.
  held_out_split: str = 'test'
  # File that says which class of the round in `initial` each class of the data is: a JSON object,
  # or text with a line `name of the data = name of the teacher` for each class. Labels are then the
  # teacher's numbers. '' means that both have the same names in the same order.
  classes: str = ''
  # Whether training mirrors each picture left to right with probability 1/2.
  flip: bool = False
  # Number of processes on each host that read examples; 0 reads in threads of the training process.
  workers: int = 0
  # Number of threads in each process that reads examples.
  threads: int = 4
  # Number of batches that each process reads ahead of the training; more take more memory.
  prefetch: int = 2


@dataclasses.dataclass(frozen=True)
class Latents:
  """Latent space: the frozen encoders of pictures and captions, and the cache of their outputs.

  In latent space, `model.image_size` and `model.image_channels` describe a latent.
  """

  # Folder or files of the autoencoder that encodes the pictures; '' trains on pixels, and then the
  # other keys of this section have no effect.
  autoencoder: str = ''
  # Folder of the text encoder, or the Python package that contains it; '' for no text encoder.
  # Must be set if `model.context` is 'text', and must be '' otherwise.
  text: str = ''
  # Number of tokens of a caption that the text encoder reads; longer captions are cut. 0 means 77
  # for CLIP and 16 for BERT.
  text_length: int = 0
  # Caption for pictures that have a class but no caption; {} stands for the name of the class.
  template: str = 'a photo of a {}'
  # Local folder of the cache of encoded pictures and captions; '' means WORKDIR/latents.
  cache: str = ''
  # Number of pictures that each process encodes at a time; another number may change the last bits
  # of the latents.
  batch_size: int = 64
  # Number of pictures in each shard of the cache; complete shards survive an interrupted encoding.
  shard_size: int = 1024
  # Whether unreadable pictures are left out and counted; False: the first one ends the run.
  skip_corrupt: bool = False
  # Number of random masks that the cache holds for each picture, and for each mirrored picture, to
  # train an inpainting network; other networks ignore this key.
  masks: int = 4


@dataclasses.dataclass(frozen=True)
class Noise:
  """The noise schedule: logsnr as a function of time t, where t = 0 is data and t = 1 is noise."""

  # Shape of the schedule: 'cosine' is continuous; the others are discrete, with 1,000 betas that
  # are linear, linear in their square roots, or given by a squared cosine without other keys.
  name: Literal['cosine', 'linear_beta', 'scaled_linear', 'squared_cosine']
  # logsnr of the schedule 'cosine' at t = 1; lower is closer to pure noise.
  logsnr_min: float = -20.0
  # logsnr of the schedule 'cosine' near t = 0, and the largest logsnr that the network gets.
  logsnr_max: float = 20.0
  # First beta of the schedules 'linear_beta' and 'scaled_linear'.
  beta_start: float = 0.00085
  # Last beta of the schedules 'linear_beta' and 'scaled_linear'.
  beta_end: float = 0.012
  # Whether the betas are rescaled so that z at t = 1 is pure noise, as those of some published
  # networks that predict v. Needs a discrete schedule, and a network that does not predict eps.
  zero_terminal_snr: bool = False


@dataclasses.dataclass(frozen=True)
class Model:
  """The network: its architecture in models/, its sizes, its inputs and what it predicts.

  The keys that have a default are there for networks on latents and for published networks.
  """

  # Height and width of the pictures that the network takes, or of the latents in latent space.
  image_size: int
  # Number of channels of the pictures (1 grey, 3 colour), or of the latents in latent space.
  image_channels: int
  # Number of classes; labels run from 0 to num_classes - 1. Captioned pictures have 1 class.
  num_classes: int
  # Base width of a U-Net, in channels; the width of every block of a DiT.
  channels: int
  # Width of each resolution of a U-Net, finest first, as a multiple of `channels`. The network
  # halves the resolution between two entries. A DiT ignores this key.
  multipliers: tuple[int, ...]
  # Number of residual blocks at each resolution of a U-Net on the way down (one more on the way
  # up); the number of all blocks of a DiT.
  num_blocks: int
  # Heights of the feature maps at which a U-Net has attention after its residual blocks; the middle
  # block always has attention. A DiT ignores this key.
  attention_resolutions: tuple[int, ...]
  # Width of a U-Net's embedding of time, w and class; the embedding of a DiT has `channels`.
  emb_channels: int
  # Number of heads of every attention layer; None where `head_dim` is given.
  heads: int | None
  # Number of channels of each attention head; None where `heads` is given.
  head_dim: int | None
  # Number of groups of a U-Net's group norms, a divisor of every width. A DiT ignores this key.
  groups: int
  # Dropout rate in a U-Net's residual blocks while the teacher is trained; distillation uses no
  # dropout, and a DiT has none.
  dropout: float
  # Number of Fourier features of w in a network that takes w, an even number.
  w_features: int
  # Factor on w in the Fourier features of w; larger resolves smaller differences of w. An export of
  # a student on latents to diffusers needs 1000.
  w_scale: float
  # Type that the network computes in; trained parameters, norms and the output stay float32.
  dtype: Literal['float32', 'bfloat16']
  # What the network outputs: the clean picture x, the noise eps, v = alpha eps - sigma x, or the
  # flow velocity x - eps of a network on the linear path between noise and data.
  predict: Literal['x', 'eps', 'v', 'flow']
  # Architecture: the paper's pixel U-Net, the U-Net of latent diffusion with cross-attention, or
  # the diffusion transformer.
  network: Literal['unet', 'latent_unet', 'dit'] = 'unet'
  # What the cross-attention of 'latent_unet' attends to: nothing, one token for the class, or the
  # tokens of the caption. Other networks need 'none', which adds the class to the time embedding.
  context: Literal['none', 'class', 'text'] = 'none'
  # Width of the tokens that cross-attention attends to; 0 if `context` is 'none'.
  context_dim: int = 0
  # Number of tokens that the text encoder returns; 0 unless `context` is 'text'.
  context_length: int = 0
  # Number of layers in each transformer of 'latent_unet'; other networks ignore this key.
  transformer_depth: int = 1
  # Whether published weights store the first and last layers of the transformers of 'latent_unet'
  # as linear layers (Stable Diffusion 2) or as 1x1 convolutions; the network computes the same.
  linear_projection: bool = False
  # Number of further input channels: image_channels + 1 for inpainting (the mask, and the masked
  # picture); 0 for other networks. A DiT needs 0.
  extra_channels: int = 0
  # Height and width of the patches of a DiT, a divisor of `image_size`.
  patch: int = 2
  # Number that the network takes as time: the schedule angle phi scaled to 0..1000, the
  # timestep index of a discrete schedule, or t = alpha / (alpha + sigma) of the linear path.
  time: Literal['phi', 'index', 'linear'] = 'phi'
  # Epsilon of a U-Net's group norms; a DiT ignores this key.
  epsilon: float = 1e-6
  # Shift in the frequencies of the time sinusoids of 'unet' and 'dit': 1 by default, 0 in published
  # ADM and DiT networks. 'latent_unet' always has 0.
  freq_shift: float = 1.0
  # Whether 'unet' puts the cosines before the sines in its time features, as ADM does. Other values
  # of `network` always put the cosines first.
  cos_first: bool = False
  # Whether 'unet' or 'dit' has extra outputs for a variance, which gdistill ignores.
  learned_sigma: bool = False
  # Number of channels, from the first, that guidance changes; 0 means all. The authors of DiT and
  # SiT sample with 3 of 4 channels.
  guided_channels: int = 0


@dataclasses.dataclass(frozen=True)
class Training:
  """The optimisation of a stage: Adam with weight decay; every round starts with a new state."""

  # Number of updates of each round; in `progressive`, of each round for over 2 sampling steps.
  steps: int
  # Number of examples in each update, over all devices and microbatches.
  batch_size: int
  # Number of microbatches that a batch is computed in, one after another; more need less memory.
  accumulation: int
  # Learning rate of Adam after warm-up; in `progressive`, of rounds for over 2 sampling steps.
  lr: float
  # Whether the learning rate falls linearly to 0 over each round; False keeps it constant.
  anneal: bool
  # Number of updates of warm-up, a linear rise of the learning rate in each round; 0: no warm-up.
  warmup: int
  # Decay per update of the EMA of the parameters. The result of a round is the EMA, or, if this key
  # is 0, the parameters themselves.
  ema: float
  # Decay of Adam's first moment per update.
  beta1: float
  # Decay of Adam's second moment per update.
  beta2: float
  # Epsilon that Adam adds to the root of the second moment.
  adam_eps: float
  # Decoupled weight decay: each update subtracts lr * weight_decay * parameters; 0: no decay.
  weight_decay: float
  # Largest norm of the gradient of all parameters; larger gradients are scaled to this norm.
  grad_clip: float
  # Factor on the squared error of x in the loss, from SNR, the signal-to-noise ratio: SNR,
  # max(SNR, 1), or SNR + 1.
  weight: Literal['snr', 'snr_trunc', 'snr_plus_one']


@dataclasses.dataclass(frozen=True)
class Teacher(Training):
  """The stage `teacher`: trains a conditional network that also learns the null condition."""

  # Probability that an example's label or caption is replaced by the null condition. Guidance
  # needs a value above 0. The naive baseline also drops labels in the stage `progressive`.
  p_uncond: float


@dataclasses.dataclass(frozen=True)
class Guidance(Training):
  """The stage `guidance`, stage one: distils the guided teacher into one network that takes w."""

  # Smallest guidance strength w that students are trained for; w = 0 is the conditional model.
  w_min: float
  # Largest guidance strength w that students are trained for; training draws w uniformly. If w_max
  # equals w_min, students are for this single w and have no input for w.
  w_max: float
  # Number of values of w drawn for each example; one pass of the teacher serves all of these w.
  ws_per_pass: int
  # Noisy states z_t to train on: noised data, or states on the guided teacher's own DDIM path.
  state: Literal['data', 'trajectory']
  # Number of DDIM steps of the guided teacher's path; used only if `state` is 'trajectory'.
  trajectory_steps: int
  # Whether the teacher's conditional and null pass run as one batch; faster on accelerators.
  one_batch: bool
  # The loss is divided by (1 + w)^w_power: a larger power favours small w, and the paper has 0.
  w_power: float = 0.0
  # Whether the loss compares x_hat clipped to [-1, 1], as samplers clip x_hat; the paper's loss has
  # False. Latents need False, because samplers do not clip latents.
  clip_x_hat: bool = False


@dataclasses.dataclass(frozen=True)
class Progressive(Training):
  """The stage `progressive`, stage two: each round halves the number of sampling steps N."""

  # Number of sampling steps N that the first round halves: `end_steps` times a power of two.
  start_steps: int
  # Number of sampling steps N of the student of the last round.
  end_steps: int
  # Sampler that the students are distilled for: DDIM, or the paper's stochastic sampler.
  sampler: Literal['deterministic', 'stochastic']
  # Noisy states z_t to train on: noised data, or states on the DDIM path of the round's teacher.
  state: Literal['data', 'trajectory']
  # Number of updates of each round for 2 or 1 sampling steps; these rounds have most to learn.
  last_steps: int
  # Learning rate of each round for 2 or 1 sampling steps.
  last_lr: float
  # The loss is divided by (1 + w)^w_power: a larger power favours small w, and the paper has 0.
  w_power: float = 0.0
  # Whether the loss compares x_hat clipped to [-1, 1], and the teacher's two steps clip x_hat too;
  # the paper has False. Must be True if `guidance.clip_x_hat` is True, and False for latents.
  clip_x_hat: bool = False


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The mesh of devices: slices x data x fsdp must be the number of devices.

  Batches are split over all devices, large parameters over the axis `fsdp`, and arrays that only
  the optimiser needs (Adam's moments and the EMA) over the axes `fsdp` and `data`.
  """

  # Size of the mesh axis that splits batches, Adam's moments and the EMA, but not parameters; -1:
  # the number of devices of a slice, divided by `fsdp`.
  data: int
  # Number of parts that large parameters are split into; more need less memory and more
  # communication. -1: devices of a slice, divided by `data`. `data` and `fsdp` cannot both be -1.
  fsdp: int
  # Number of TPU slices, or of other groups of devices that a slow network connects.
  slices: int = 1
  # Number of simulated devices that JAX makes of one CPU; another number changes the last bits of
  # the results. GPUs and TPUs ignore this key.
  cpu_devices: int = 1


@dataclasses.dataclass(frozen=True)
class Train:
  """The training loop of every stage: checkpoints, logs, skipped updates and memory."""

  # Number of updates in one call of the compiled step on GPUs and TPUs; on a CPU always 1.
  # Must divide the updates of every round, `checkpoint_every` and `log_every`.
  substeps: int
  # Number of updates between two checkpoints of a round; fewer mean less lost work after a kill.
  checkpoint_every: int
  # Number of checkpoints of an unfinished round that are kept.
  max_to_keep: int
  # Number of updates between two lines of metrics.jsonl.
  log_every: int
  # Number of updates in a row with a loss or gradient that is not finite (such an update is
  # skipped) at which the run ends with exit code 5.
  max_skipped_in_a_row: int
  # Largest percentage of skipped updates in a round; with a larger percentage, and at least
  # `max_skipped_in_a_row` skipped updates in the round, the run ends with exit code 5.
  max_skipped_percent: float
  # Activations that the student's backward pass recomputes to save memory: none, or all
  # inside each block, which takes a fifth more computation and needs far less memory.
  remat: Literal['none', 'blocks'] = 'none'
  # Seconds without an update until the watchdog ends the process with exit code 134; 0: never. The
  # limit is at least 30 times the median update, and in compiles and saves six times this key.
  stall_seconds: float = 300.0


STAGES = ('teacher', 'guidance', 'progressive')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All settings of one run: the stages, the initial round, and the sections of the config."""

  # Seed of everything random in training: initial parameters, order of examples, noise, w, dropout.
  seed: int
  # Stages to train: consecutive stages of ('teacher', 'guidance', 'progressive'), or ('teacher',
  # 'progressive') for the naive baseline, or () to train an encoder alone.
  stages: tuple[str, ...]
  # Folder of a finished round that the first stage starts from; '' if `stages` begins with a
  # teacher from random parameters. A first stage 'teacher' may have another `model.predict`.
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
  # Whether the run also distils an encoder, from data to noise, starting from the student of stage
  # one, with the settings of `progressive` but always for the deterministic sampler.
  encoder: bool = False

  def settings(self, stage: str) -> Training:
    """Returns the settings of `stage`; the stage `encoder` uses the section `progressive`."""
    return getattr(self, 'progressive' if stage == 'encoder' else stage)

  @property
  def sections(self) -> tuple[str, ...]:
    """Names of the stages' sections in the config that the rounds of this run use."""
    ladder = ('progressive',) if self.encoder and 'progressive' not in self.stages else ()
    return self.stages + ladder

  @property
  def latent(self) -> bool:
    """Whether the networks work on latents, not on pixels."""
    return bool(self.latents.autoencoder)

  @property
  def inpainting(self) -> bool:
    """Whether the networks take a mask and the masked picture as further input channels."""
    return self.model.extra_channels > 0

  @property
  def naive(self) -> bool:
    """Whether this run is the naive baseline: distil without guidance, guide while sampling."""
    return self.stages == ('teacher', 'progressive')

  @property
  def single_w(self) -> bool:
    """Whether students are trained for one value of w only."""
    return self.guidance.w_min == self.guidance.w_max

  @property
  def takes_w(self) -> bool:
    """Whether the students have an input for w."""
    return not self.naive and not self.single_w
