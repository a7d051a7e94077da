"""What can go wrong at the edge, and the exit code each kind of trouble leaves behind."""


def brief(e: BaseException, most: int = 300) -> str:
  """What another library's error says, in one line, cut in the middle: some quote a whole file."""
  text = ' '.join(str(e).split()) or type(e).__name__
  half = most // 2
  return text if len(text) <= most else f'{text[:half]} ... {text[-half:]}'


class GdistillError(Exception):
  """One line for the user: the field or file, the value found, the remedy."""

  exit_code = 1

  def __str__(self) -> str:
    return ' '.join(super().__str__().split())  # of what it quotes, too


class ConfigError(GdistillError, ValueError):
  """A config, flag or argument that cannot be run."""

  exit_code = 2


class DataError(GdistillError):
  """A data set that is missing, too small or malformed."""

  exit_code = 3


class ShapeError(DataError):
  """Pictures of another height, width and channels, `found`, than are wanted."""

  def __init__(self, found: tuple[int, int, int], line: str):
    super().__init__(line)
    self.found = found


class CheckpointError(GdistillError):
  """A folder that cannot be read, restored or written."""

  exit_code = 4


class NumericsError(GdistillError):
  """Losses or gradients that stopped being finite."""

  exit_code = 5


class PeerError(GdistillError):
  """Other processes of the run did not come: restart all, a bounded number of times."""

  exit_code = 134


class Preempted(GdistillError):  # noqa: N818 - it is no error
  """A signal arrived; everything is saved, and the same command goes on from here."""

  exit_code = 42
