"""Sphinx settings: the pages are plain Markdown and read as well without it."""

project = "jaxloss"
copyright = "the jaxloss authors"
extensions = ["myst_parser"]
exclude_patterns = []
