"""The report of a run: one HTML page that works offline, written from the files of the workdir.

`page.write(workdir)` writes WORKDIR/report/index.html. `tables.markdown(rows)` returns a table of
rows as Markdown. `summary.protocol_of(rows)` returns how the distances of the rows were measured.
`plots` draws curves as SVG with matplotlib. Jinja2 templates hold all text and HTML of the page.
This package may import, of gdistill, only workdir.storage and errors.
"""
