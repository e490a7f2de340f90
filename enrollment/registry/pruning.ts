import type { Sqlite } from '#shared/sqlite'
import type { AuditRow, Intent } from './ledger.ts'
import { type PrunedLogs, prunedRow, prunedSubject } from './pruned.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

interface ExpiredRow {
  readonly row: number
}

function prepare(db: Sqlite) {
  return {
    entries: db.prepare<[number, number], Pick<AuditRow, 'sequence' | 'at' | 'hash' | 'last_position'>>(
      'SELECT sequence, at, hash, last_position FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?',
    ),
    covering: db.prepare<[number, number], Pick<AuditRow, 'at' | 'last_position'>>(
      'SELECT at, last_position FROM audit WHERE last_position > ? ORDER BY sequence LIMIT ?',
    ),
    newest: db.prepare<[], { sequence: number; position: number }>(
      'SELECT (SELECT MAX(sequence) FROM audit) AS sequence, (SELECT MAX(position) FROM changes) AS position',
    ),
    dropEntries: db.prepare<[number]>('DELETE FROM audit WHERE sequence <= ?'),
    dropChanges: db.prepare<[number]>('DELETE FROM changes WHERE position <= ?'),
    last: db.prepare<[number, number], { row: number | null }>(
      'SELECT MAX(row) AS row FROM (SELECT row FROM certificates WHERE row > ? ORDER BY row LIMIT ?)',
    ),
    // The newest of a device stays: it says that the id is taken. Revoked ones stay: they keep it from coming back.
    expired: db.prepare<[number, number, number], ExpiredRow>(
      `SELECT c.row FROM certificates c WHERE c.row > ? AND c.row <= ? AND c.not_after < ? AND c.state <> 'revoked'
         AND EXISTS (SELECT 1 FROM certificates n WHERE n.device = c.device AND n.row > c.row AND n.fingerprint IS NOT NULL)`,
    ),
    drop: db.prepare<[number]>('DELETE FROM certificates WHERE row = ?'),
    dropInfrastructure: db.prepare<[number]>(
      'DELETE FROM infrastructure WHERE not_after < ? AND revoked_at IS NULL',
    ),
  }
}
type Statements = ReturnType<typeof prepare>

type PruningIntents = Pick<Registry, 'pruneLogs' | 'pruneCertificates' | 'oldestPosition'>

/** Ends what has been kept for long enough, in slices. */
export function openPruning(store: Store): PruningIntents {
  const statements = prepare(store.db)
  const pruned = prunedRow(store.db)
  return {
    oldestPosition: () => store.read(() => pruned.read().changes),
    pruneLogs: (of, act) =>
      store.write(act, (log) => {
        const before = pruned.read()
        const after = logsAfter(statements, { ...of, pruned: before })
        if (after.sequence === before.sequence && after.changes === before.changes) return 0
        statements.dropEntries.run(after.sequence)
        statements.dropChanges.run(after.changes)
        pruned.write(after)
        log.audit({ action: 'log.prune', subject: prunedSubject(after) })
        return after.sequence - before.sequence + (after.changes - before.changes)
      }),
    pruneCertificates: (of, act) => store.write(act, (log) => pruneCertificates(statements, { ...of, log })),
  }
}

/** Where the logs begin after this slice. Never the newest entry or change: their numbers go on from them. */
function logsAfter(
  statements: Statements,
  of: { changesBefore: number; auditBefore: number; limit: number; pruned: PrunedLogs },
): PrunedLogs {
  const newest = statements.newest.get() ?? { sequence: 0, position: 0 }
  let { sequence, hash, position, changes } = of.pruned
  for (const entry of statements.covering.iterate(changes, of.limit)) {
    if (
      entry.at >= of.changesBefore ||
      entry.last_position === null ||
      entry.last_position >= newest.position
    )
      break
    changes = entry.last_position
  }
  for (const entry of statements.entries.iterate(sequence, of.limit)) {
    const covered = entry.last_position ?? position
    if (entry.at >= of.auditBefore || entry.sequence >= newest.sequence || covered > changes) break
    ;({ sequence, hash } = entry)
    position = covered
  }
  return { sequence, hash, position, changes }
}

function pruneCertificates(
  statements: Statements,
  { from, expiredBefore, limit, log }: { from: number; expiredBefore: number; limit: number; log: Intent },
): { next: number | null; pruned: number } {
  const last = statements.last.get(from, limit)?.row ?? null
  if (last === null) {
    const { changes } = statements.dropInfrastructure.run(expiredBefore)
    if (changes > 0) log.audit({ action: 'certificate.prune', subject: `infrastructure:${changes}` })
    return { next: null, pruned: changes }
  }
  const rows = statements.expired.all(from, last, expiredBefore)
  for (const { row } of rows) statements.drop.run(row)
  if (rows.length > 0) log.audit({ action: 'certificate.prune', subject: `certificates:${rows.length}` })
  return { next: last, pruned: rows.length }
}
