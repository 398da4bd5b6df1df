"""The HTML report of a replay: one file, drawn by hand, that needs neither network nor scripts to be read.

`page.py` puts it together, `lines.py` and `bars.py` draw, `scales.py` and `words.py` say where and how numbers go.
`page.css` and `page.js` are put into the file; the script only adds what a pointer can do.
"""

from kvrouter.replay.report.page import as_html

__all__ = ["as_html"]
