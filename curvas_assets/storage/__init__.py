"""Formats of what is stored (volumes, maps, tables, folders) and the object stores they go to. Nothing of Dagster."""

from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter, open_softmax, read_softmax, write_softmax

__all__ = ["SoftmaxVolume", "SoftmaxWriter", "open_softmax", "read_softmax", "write_softmax"]
