"""What a data set is to the rest: labelled pixels that can be gathered by index."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
  """pixels [n, H, W, C] uint8, labels [n] int32 and the classes' names."""

  pixels: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.labels)

  def gather(self, index: np.ndarray) -> dict[str, np.ndarray]:
    """{'pixels': [B, H, W, C] uint8, 'label': [B] int32}."""
    return {'pixels': self.pixels[index], 'label': self.labels[index]}
