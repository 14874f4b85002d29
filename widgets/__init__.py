"""Notebook widgets for opensora_lite. Empty so far: the widgets arrive with an issue of their own.

Widgets import the library; the library never imports widgets.
"""
