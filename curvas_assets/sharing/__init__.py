"""Sharing: previews of patients, and a bundle of report, tables and viewer that opens offline, without keys of the bucket."""

from curvas_assets.sharing.bundle import Bundle, Contents, leaks, worst_first, write_zip
from curvas_assets.sharing.previews import Plan, plan_preview

__all__ = ["Bundle", "Contents", "Plan", "leaks", "plan_preview", "worst_first", "write_zip"]
