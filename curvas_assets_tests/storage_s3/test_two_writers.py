"""Claims proved here, on a real S3 server, with the rounds of `benchmarks.two_writers` (which has 200 of each kind).

- Whatever the order of the requests of two or three writers, of whom one may be killed at any of them, of a sweep and of
  readers: every reader gets one writer's content or is told to read again, and in the end the last one announced stands.
"""

from benchmarks.two_writers import races


def test_whatever_the_order_of_requests_nothing_is_torn(s3_store, tmp_path):
    outcomes = races(s3_store, 4, tmp_path, seed=1000)
    assert set(outcomes) == {"folder", "volume", "checkpoint"}
    assert [(name, one.torn) for name, found in outcomes.items() for one in found if one.torn] == []
    assert sum(outcome.readings.total() for found in outcomes.values() for outcome in found) > 10
