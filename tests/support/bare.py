"""An environment of few variables, in which the interpreter of the tests still starts."""

import os

# An interpreter outside the system's folders may need LD_LIBRARY_PATH.
_KEPT = {k: v for k, v in os.environ.items() if k == 'LD_LIBRARY_PATH'}


def environment(path: str = '/usr/bin:/bin', **more) -> dict[str, str]:
  return {'PATH': path, **_KEPT, **{k: str(v) for k, v in more.items()}}
