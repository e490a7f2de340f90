import type { Sqlite } from '#shared/sqlite'
import type { Intent } from './ledger.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

/** Devices are forgotten in slices of this size, so that no commit is long. */
const DEVICES_PER_SLICE = 500

type Statements = ReturnType<typeof prepare>

const SYNTHETIC_FLEETS = 'SELECT f.id FROM fleets f WHERE f.synthetic = 1'
const SYNTHETIC_TOKENS = `SELECT t.row FROM tokens t JOIN batches b ON b.id = t.batch WHERE b.fleet IN (${SYNTHETIC_FLEETS})`

function prepare(db: Sqlite) {
  const dependents = [
    'DELETE FROM connections WHERE device = ?',
    'DELETE FROM refusals WHERE bucket = ?',
    'DELETE FROM approvals WHERE device = ?',
  ]
  return {
    next: db.prepare<[number], { row: number; id: string }>(
      `SELECT d.row, d.id FROM devices d WHERE d.fleet IN (${SYNTHETIC_FLEETS}) LIMIT ?`,
    ),
    dependents: [
      ...dependents,
      'DELETE FROM certificates WHERE device = ?',
      'DELETE FROM devices WHERE row = ?',
    ].map((sql) => db.prepare<[number]>(sql)),
    applications: db.prepare<[]>(`DELETE FROM approvals WHERE token IN (${SYNTHETIC_TOKENS})`),
    lists: db.prepare<[]>(`DELETE FROM token_devices WHERE token IN (${SYNTHETIC_TOKENS})`),
    tokens: db.prepare<[]>(`DELETE FROM tokens WHERE row IN (${SYNTHETIC_TOKENS})`),
    /** Their uses can no longer be told from their devices. */
    cancel: db.prepare<[number]>(
      `UPDATE tokens SET cancelled_at = ? WHERE cancelled_at IS NULL AND row IN (${SYNTHETIC_TOKENS})`,
    ),
  }
}

/** Forgets the devices of synthetic fleets and the tokens that they came with; the fleets and batches stay. */
export function openSynthetic(store: Store): Pick<Registry, 'clearSynthetic'> {
  const statements = prepare(store.db)
  return {
    async clearSynthetic(act) {
      await store.write(act, (log) => {
        const { changes } = statements.cancel.run(act.now)
        if (changes > 0) log.audit({ action: 'synthetic.cancel', subject: `tokens:${changes}` })
      })
      for (let forgotten = 0; ; ) {
        const slice = await store.write(act, (log) => forgetSlice(statements, log))
        forgotten += slice
        if (slice < DEVICES_PER_SLICE) return forgotten
      }
    },
  }
}

/** The last slice takes the tokens too: certificates refer to them. */
function forgetSlice(statements: Statements, log: Intent): number {
  const devices = statements.next.all(DEVICES_PER_SLICE)
  for (const { row, id } of devices) {
    for (const statement of statements.dependents) statement.run(row)
    log.change({ kind: 'forgotten', device: id })
  }
  if (devices.length > 0) log.audit({ action: 'synthetic.clear', subject: `devices:${devices.length}` })
  if (devices.length < DEVICES_PER_SLICE) {
    statements.applications.run()
    statements.lists.run()
    statements.tokens.run()
  }
  return devices.length
}
