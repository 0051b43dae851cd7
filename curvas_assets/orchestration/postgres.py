"""Dagster's event log in Postgres, with pools that hold. The instance files for Postgres name it.

Dagster 1.13 reads a free slot `FOR UPDATE` and then writes it, on a connection that commits after each statement: the row's
lock ends before the row is written, and several runs get one slot. It inserts a pool's default limit even if another run
has just done so, or if the limit is there and was changed in the instance file since. Postgres then refuses the rest of
that transaction, and the run fails. Here a slot is claimed, and a default limit set, by one statement.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy
from dagster_postgres import PostgresEventLogStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config

from curvas_assets.orchestration.dagster_internals import (
    ConcurrencySlotStatus,
    ConfigurableClass,
    ConfigurableClassData,
)

CLAIM = sqlalchemy.text(
    "UPDATE concurrency_slots SET run_id = :run, step_key = :step WHERE id = ("
    "SELECT id FROM concurrency_slots WHERE concurrency_key = :pool AND step_key IS NULL AND NOT deleted "
    "ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)"
)
SET_DEFAULT = sqlalchemy.text(
    'INSERT INTO concurrency_limits (concurrency_key, "limit", using_default_limit) VALUES (:pool, :slots, true) '
    'ON CONFLICT (concurrency_key) DO UPDATE SET "limit" = :slots WHERE concurrency_limits.using_default_limit '
    "RETURNING id"
)
"""Returns no row if somebody has set a limit for this pool, which then stays."""


class PooledEventLogStorage(PostgresEventLogStorage, ConfigurableClass):
    """Dagster's event log in Postgres. A slot of a pool belongs to one step, however many runs claim it at once."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PostgresEventLogStorage:
        return cls(  # as the inherited method, which makes an instance of its own class whatever it is called on
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )

    def initialize_concurrency_limit_to_default(self, concurrency_key: str) -> bool:
        slots = self._instance.global_op_concurrency_default_limit if self.has_instance else None
        if slots is None or not (self.has_concurrency_limits_table and self.has_default_pool_limit_col):
            return super().initialize_concurrency_limit_to_default(concurrency_key)
        with self.index_transaction() as connection:
            ours = connection.execute(SET_DEFAULT, {"pool": concurrency_key, "slots": slots}).fetchone()
            added = self._allocate_concurrency_slots(connection, concurrency_key, slots) if ours else []
        self.assign_pending_steps(added)
        return True

    def _claim_concurrency_slot(self, concurrency_key: str, run_id: str, step_key: str) -> ConcurrencySlotStatus:
        with self.index_connection() as connection:
            claimed = connection.execute(CLAIM, {"pool": concurrency_key, "run": run_id, "step": step_key}).rowcount
        return ConcurrencySlotStatus.CLAIMED if claimed else ConcurrencySlotStatus.BLOCKED
