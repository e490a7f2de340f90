import type { BootstrapAlarm } from '#shared/api/bootstrap'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

/** What the status of the plane says of attempts on tokens, claims and manufacturers that were over. */
export function openBootstrapAlarms(store: Store): Pick<Registry, 'bootstrapAlarms'> {
  const newest = store.db.prepare<[number, number], BootstrapAlarm>(
    `SELECT t.batch, t.kind, t.id AS token, a.code, a.attempts, a.last_at AS lastAt
     FROM token_attempts a CROSS JOIN tokens t ON t.row = a.token
     WHERE a.last_at >= ? ORDER BY a.last_at DESC, a.token DESC, a.code LIMIT ?`,
  )
  return { bootstrapAlarms: ({ since, limit }) => store.read(() => newest.all(since, limit)) }
}
