"""The report of a run: one HTML page that works offline, written from the files of the workdir.

`page.write(workdir)` writes WORKDIR/report/index.html; `tables.markdown(rows)` returns the table as
Markdown; `summary.protocol_of(rows)` says how the distances of the rows were measured.
plots.py draws curves as SVG with matplotlib; the Jinja2 templates hold all text and HTML.
May import, of gdistill, only workdir.storage and errors.
"""
