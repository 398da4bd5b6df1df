"""Which test stands for which row of the acceptance table: `python -m tests.acceptance` writes docs/acceptance.md.

The rows are data (`rows/`), one file for each part. A test stands for the rows that its docstring names (`A-113`,
`A-251 to A-256`); a figure may name its benchmark instead, what is for operators a section of a page.
"""
