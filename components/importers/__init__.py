"""Importers: from public data sets, or tables of your own, to a world."""
