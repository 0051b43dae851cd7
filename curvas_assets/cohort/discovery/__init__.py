"""What is in a folder of scans and label maps: found, judged, and proposed as a study file."""

from curvas_assets.cohort.discovery.layout import Layout, Role, find_layout, matches
from curvas_assets.cohort.discovery.survey import Finding, Listed, Source, Survey, survey

__all__ = ["Finding", "Layout", "Listed", "Role", "Source", "Survey", "find_layout", "matches", "survey"]
