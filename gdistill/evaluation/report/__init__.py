"""The report of a run: one HTML page that needs no network, written from the files of the workdir.

`page.write(workdir)` writes WORKDIR/report/index.html; `tables.markdown(rows)` returns the table as
Markdown; `summary.protocol_of(rows)` says how the distances of the rows were measured.
Python computes values, plots.py draws them as SVG, and the Jinja2 templates hold all text and HTML.
The room reads and writes files through `storage`, catches `errors`, and imports no other room.
"""
