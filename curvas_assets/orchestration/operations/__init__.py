"""What people do with the platform beside making assets: upload, download, look, empty; each a job with a launchpad."""

from curvas_assets.orchestration.operations.jobs import build

__all__ = ["build"]
