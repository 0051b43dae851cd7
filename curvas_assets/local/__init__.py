"""One machine without a cluster or a cloud: an embedded S3 server, the Dagster processes, and the demo on them.

Nothing here is known to the assets; any S3-compatible store and any Dagster deployment serve them as well.
"""
