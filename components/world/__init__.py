"""Worlds: folders of canonical tables, read, checked and written."""
