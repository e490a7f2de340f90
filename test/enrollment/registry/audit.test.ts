import { join } from 'node:path'
import t, { type Test } from 'tap'
import { openSqlite, type Sqlite } from '#shared/sqlite'
import { openAudit } from '../../../enrollment/registry/audit.ts'
import { type AuditRow, auditHash, GENESIS_HASH } from '../../../enrollment/registry/ledger.ts'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import { MIGRATIONS } from '../../../enrollment/registry/schema.ts'
import { Store } from '../../../enrollment/registry/store.ts'
import fc from '../../support/properties.ts'
import { BEGIN, device, planeOf } from '../../support/registry-plane.ts'

/** The audit log of a registry with some history, for somebody who can write to the file. */
async function history(t: Test) {
  const path = join(t.testdir({}), 'registry.db')
  const registry = await openRegistry(path, { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN })
  const plane = planeOf(registry)
  await plane.broker()
  for (let i = 0; i < 6; i++) await plane.report([plane.connected(await plane.enroll(`d${i}`))])
  await plane.hold('p1', { scope: 'batch', id: 'lab' })
  await plane.registry.undoPlan('p1', plane.act())
  await plane.revoke('p2', device('d1', 'd2'))
  await plane.token('last') // an entry without changes
  const entries = await registry.listAudit(0, 1000)
  const { position: changes } = await registry.cursor()
  await registry.close()

  const db = openSqlite(path, { busyTimeoutMs: 1000, migrations: MIGRATIONS })
  t.teardown(() => db.close())
  const { verifyAudit } = openAudit(new Store(db))
  /** What verification says after `tamper`, which is then taken back. */
  const verdict = async (tamper: (db: Sqlite) => void) => {
    db.exec('BEGIN')
    tamper(db)
    const firstBad = await verifyAudit()
    db.exec('ROLLBACK')
    return firstBad
  }
  /** The sequence of the entry that covers a change. */
  const covering = (position: number) =>
    entries.find(
      ({ positions }) => positions !== null && positions[0] <= position && position <= positions[1],
    )?.sequence
  return { entries: entries.length, log: entries, changes, verdict, covering }
}

const COLUMNS = ['at', 'by', 'action', 'subject', 'first_position', 'last_position', 'changes_digest', 'hash']
const runs = { numRuns: 250 }

t.test('an audit log that nobody touched is whole', async (t) => {
  const { verdict } = await history(t)
  t.equal(await verdict(() => undefined), null)
})

t.test('an edited entry is found, whichever it is and whatever was edited', async (t) => {
  const { entries, verdict } = await history(t)
  const edits = fc.record({ k: fc.integer({ min: 1, max: entries }), column: fc.constantFrom(...COLUMNS) })
  await fc.assert(
    fc.asyncProperty(edits, async ({ k, column }) => {
      const edit = `UPDATE audit SET ${column} = COALESCE(${column}, 0) || '1' WHERE sequence = ?`
      t.equal(await verdict((db) => db.prepare(edit).run(k)), k)
    }),
    runs,
  )
})

t.test('deleted entries are found, also the newest', async (t) => {
  const { entries, verdict } = await history(t)
  const range = fc.tuple(fc.integer({ min: 1, max: entries }), fc.integer({ min: 1, max: entries }))
  await fc.assert(
    fc.asyncProperty(range, async ([a, b]) => {
      const erase = (db: Sqlite) =>
        db.prepare('DELETE FROM audit WHERE sequence BETWEEN ? AND ?').run(Math.min(a, b), Math.max(a, b))
      t.equal(await verdict(erase), Math.min(a, b))
    }),
    runs,
  )
  for (let k = 1; k <= entries; k++) {
    t.equal(await verdict((db) => db.prepare('DELETE FROM audit WHERE sequence >= ?').run(k)), k, 'cut off')
  }
})

t.test('two entries that changed places are found', async (t) => {
  const { entries, verdict } = await history(t)
  const pair = fc.uniqueArray(fc.integer({ min: 1, max: entries }), { minLength: 2, maxLength: 2 })
  await fc.assert(
    fc.asyncProperty(pair, async ([a = 0, b = 0]) => {
      const swap = (db: Sqlite) => {
        const move = db.prepare('UPDATE audit SET sequence = ? WHERE sequence = ?')
        move.run(-1, a)
        move.run(a, b)
        move.run(b, -1)
      }
      t.equal(await verdict(swap), Math.min(a, b))
    }),
    runs,
  )
})

t.test('a change that was edited, deleted or slipped in is found by the entry that covers it', async (t) => {
  const { entries, changes, verdict, covering } = await history(t)
  const edits = fc.record({
    position: fc.integer({ min: 1, max: changes }),
    sql: fc.constantFrom(
      `UPDATE changes SET change = change || ' ' WHERE position = ?`,
      'DELETE FROM changes WHERE position = ?',
    ),
  })
  await fc.assert(
    fc.asyncProperty(edits, async ({ position, sql }) => {
      t.equal(await verdict((db) => db.prepare(sql).run(position)), covering(position))
    }),
    runs,
  )
  const slipIn = (db: Sqlite) => db.exec(`INSERT INTO changes (at, change) VALUES (0, '{}')`)
  t.equal(await verdict(slipIn), entries + 1, 'no entry covers it')
})

/** What somebody does who knows how the hashes are made: makes them anew, for the entries from `from` to `to`. */
function hashAgain(db: Sqlite, { from, to }: { from: number; to: number }): void {
  const rows = db.prepare<[number, number], AuditRow>(
    'SELECT * FROM audit WHERE sequence BETWEEN ? AND ? ORDER BY sequence',
  )
  const before = db.prepare<[number], { hash: string }>(
    'SELECT hash FROM audit WHERE sequence < ? ORDER BY sequence DESC LIMIT 1',
  )
  const put = db.prepare<[string, number]>('UPDATE audit SET hash = ? WHERE sequence = ?')
  for (const row of rows.all(from, to)) {
    put.run(auditHash(before.get(row.sequence)?.hash ?? GENESIS_HASH, row), row.sequence)
  }
}

t.test('an entry that was rewritten with a right hash of its own is found by the next', async (t) => {
  const { entries, verdict } = await history(t)
  for (let k = 1; k < entries; k++) {
    const rewrite = (db: Sqlite) => {
      db.prepare(`UPDATE audit SET subject = 'device:other' WHERE sequence = ?`).run(k)
      hashAgain(db, { from: k, to: k })
    }
    t.equal(await verdict(rewrite), k + 1)
  }
})

t.test(
  'an entry that was taken out is found by its number, or by its changes, when all is hashed again',
  async (t) => {
    const { entries, log, verdict } = await history(t)
    for (const { sequence: k, positions } of log.slice(0, -1)) {
      const takeOut = (db: Sqlite) => {
        db.prepare('DELETE FROM audit WHERE sequence = ?').run(k)
        hashAgain(db, { from: k, to: entries })
      }
      t.equal(await verdict(takeOut), k, 'a number is missing')
      if (positions === null) continue
      const takeOutAndRenumber = (db: Sqlite) => {
        db.prepare('DELETE FROM audit WHERE sequence = ?').run(k)
        for (let next = k + 1; next <= entries; next++) {
          db.prepare('UPDATE audit SET sequence = ? WHERE sequence = ?').run(next - 1, next)
        }
        hashAgain(db, { from: k, to: entries })
      }
      const next = log.find(({ sequence, positions }) => sequence > k && positions !== null)
      t.equal(
        await verdict(takeOutAndRenumber),
        next === undefined ? entries : next.sequence - 1,
        'changes are not covered',
      )
    }
  },
)
