"""The errors that gdistill reports to a user, each with the exit code of the process."""

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def brief(e: BaseException, most: int = 300) -> str:
  """Returns an error's message as one line; a message above `most` characters is cut in the middle.

  The message is cut because messages of other libraries may quote a whole file.
  """
  text = ' '.join(str(e).split()) or type(e).__name__
  half = most // 2
  return text if len(text) <= most else f'{text[:half]} ... {text[-half:]}'


def is_full(e: BaseException | None) -> bool:
  """Returns whether `e`, or an error that caused `e`, says that a disk or quota is full."""
  return _is_one_of(e, _FULL)


def write_advice(e: BaseException) -> str:
  """Returns advice for the end of the error line of a failed write, chosen by the error's cause."""
  if is_full(e):
    return 'free disk space'
  if _is_one_of(e, _DENIED):
    return 'fix the permissions of the folder'
  return 'check the path, its permissions and the storage'


def _is_one_of(e: BaseException | None, numbers: tuple[int, ...]) -> bool:
  while e is not None:
    # The error's text is searched too, because errors of other libraries may have no errno and only
    # quote the operating system's message.
    if getattr(e, 'errno', None) in numbers or any(os.strerror(n) in str(e) for n in numbers):
      return True
    e = e.__cause__
  return False


class GdistillError(Exception):
  """Base class of errors that users see as one line: the field or file, the value, the remedy."""

  exit_code = 1

  def __str__(self) -> str:
    return ' '.join(super().__str__().split())  # joins the lines of messages


class ConfigError(GdistillError, ValueError):
  """Raised for a config, flag or argument that is not valid."""

  exit_code = 2


class DataError(GdistillError):
  """Raised for a data set that is missing, too small or malformed."""

  exit_code = 3


class ShapeError(DataError):
  """Raised for pictures whose shape `found`, (height, width, channels), is not the expected one."""

  def __init__(self, found: tuple[int, int, int], line: str):
    super().__init__(line)
    self.found = found


class CheckpointError(GdistillError):
  """Raised for a checkpoint, folder or file that cannot be read, restored or written."""

  exit_code = 4


class NumericsError(GdistillError):
  """Raised for losses, gradients or features that are not finite."""

  exit_code = 5


class PeerError(GdistillError):
  """Raised if another process failed or did not connect; a launcher may restart all processes."""

  exit_code = 134


class Preempted(GdistillError):  # noqa: N818 - a requested stop, not an error
  """Raised after a signal stopped the run; work is saved, and the same command resumes the run."""

  exit_code = 42
