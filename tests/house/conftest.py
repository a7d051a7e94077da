"""The scripts of docs/ as modules: the tests of this folder and the scripts share their code."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'docs'))
