"""Ensembles of models: mean softmax and the decomposition of its uncertainty, whole or streamed."""

from curvas_assets.ensembling.averaging import Ensemble, average
from curvas_assets.ensembling.streaming import EnsembleSlab, stream_ensembles

__all__ = ["Ensemble", "EnsembleSlab", "average", "stream_ensembles"]
