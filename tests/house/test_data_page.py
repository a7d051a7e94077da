"""docs/data.md has every heading to which an error line sends the user."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def test_error_lines_name_headings_of_the_page_about_data():
  headings = re.findall(r'^## (.+)$', (ROOT / 'docs' / 'data.md').read_text(), re.MULTILINE)
  named = set()
  for file in (ROOT / 'gdistill').rglob('*.py'):
    named |= set(re.findall(r'see "([^"]+)" in docs/data\.md', file.read_text()))
  assert named and named <= set(headings)
