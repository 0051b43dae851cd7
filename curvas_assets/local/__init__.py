"""The platform on one machine, without a cluster or a cloud: an embedded S3 server, the Dagster processes, and the demo on them.

The assets know nothing of this package; they work with any S3-compatible store and any Dagster deployment.
"""
