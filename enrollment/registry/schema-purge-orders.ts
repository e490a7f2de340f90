/** What brokers are to forget, however they hear of it: an entry of `MIGRATIONS`. Of a plan in force nothing is known but that it came before now. */
export const PURGE_ORDERS = `
  -- Of each scope the newest order; those of a list of devices are of kind 'plan' until they have been spread to each device.
  CREATE TABLE purges (
    scope_kind TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    retained INTEGER NOT NULL, -- 1: with what the devices have retained
    epoch TEXT NOT NULL,
    position INTEGER NOT NULL, -- of the change that put the hold in force
    at INTEGER NOT NULL,
    plan TEXT NOT NULL,
    spread TEXT NOT NULL DEFAULT '', -- of kind 'plan': the last device that has a row of its own
    PRIMARY KEY (scope_kind, scope_id, retained)
  ) WITHOUT ROWID;
  CREATE INDEX purges_order ON purges (position, scope_kind, scope_id, retained);

  INSERT OR REPLACE INTO purges (scope_kind, scope_id, retained, epoch, position, at, plan)
    SELECT p.scope_kind, p.scope_id, p.purge_retained, (SELECT value FROM meta WHERE name = 'epoch'),
      (SELECT COALESCE(MAX(position), 0) FROM changes), p.applied_at, p.id
    FROM plans p WHERE p.state IN ('applied', 'finalising') ORDER BY p.applied_at;

  ALTER TABLE receipts ADD COLUMN purging INTEGER NOT NULL DEFAULT 0; -- 1: not all that the plan takes is gone there yet
  `
