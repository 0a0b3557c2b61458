"""Millpond inside what people already use: one module for each, imported only by those who ask for it."""
