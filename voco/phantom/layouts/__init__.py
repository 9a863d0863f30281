"""Folders and files as public data sets have them."""
