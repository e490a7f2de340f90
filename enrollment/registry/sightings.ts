import type { Sqlite } from '#shared/sqlite'
import type { Intent } from './ledger.ts'
import type { Registry } from './registry.ts'
import { CERTIFICATE_COLUMNS, CERTIFICATES, type CertificateRow, certificateRecord } from './rows.ts'
import type { Store } from './store.ts'

export interface FirstSighting {
  readonly at: number
  readonly overlapMs: number
  readonly log: Intent
}

function prepare(db: Sqlite) {
  return {
    see: db.prepare<[number, number]>(
      `UPDATE certificates SET first_seen_at = ?, state = CASE state WHEN 'issued' THEN 'active' ELSE state END
       WHERE row = ?`,
    ),
    older: db.prepare<[number, string, number], CertificateRow>(
      `SELECT ${CERTIFICATE_COLUMNS} FROM ${CERTIFICATES} WHERE c.device = ? AND c.line = ? AND c.row < ?
         AND c.superseded_from IS NULL AND c.state IN ('reserved', 'issued', 'active') ORDER BY c.row`,
    ),
    end: db.prepare<[number, number]>('UPDATE certificates SET superseded_from = ? WHERE row = ?'),
    due: db.prepare<[number, number], CertificateRow>(
      `SELECT ${CERTIFICATE_COLUMNS} FROM ${CERTIFICATES} WHERE c.superseded_from <= ?
         AND c.superseded_from IS NOT NULL AND c.state IN ('issued', 'active') ORDER BY c.superseded_from LIMIT ?`,
    ),
    supersede: db.prepare<[number]>(`UPDATE certificates SET state = 'superseded' WHERE row = ?`),
  }
}

/** What follows from the first use of a certificate: it is active, and the overlap of its predecessors begins. */
export function openSightings(db: Sqlite) {
  const statements = prepare(db)
  return {
    /**
     * Older certificates stay good until `overlapMs` after the first sighting. An end that is set stays, so that a
     * sighting that is reported late never shortens an overlap. Unseen successors are younger, and are left alone.
     */
    first(certificate: CertificateRow, { at, overlapMs, log }: FirstSighting): void {
      const seenAt = Math.max(at, certificate.created_at) // not before it existed, whatever the broker's clock says
      statements.see.run(seenAt, certificate.row)
      if (certificate.state !== 'issued') return
      tell(log, { ...certificate, state: 'active' })
      const end = seenAt + overlapMs
      for (const older of statements.older.all(certificate.device_row, certificate.line, certificate.row)) {
        statements.end.run(end, older.row)
        tell(log, { ...older, superseded_from: end })
      }
    },
    /** Returns how many were superseded. */
    supersedeDue(due: { now: number; limit: number; log: Intent }): number {
      const rows = statements.due.all(due.now, due.limit)
      for (const row of rows) {
        statements.supersede.run(row.row)
        tell(due.log, { ...row, state: 'superseded' })
      }
      if (rows.length > 0) due.log.audit({ action: 'supersede', subject: `certificates:${rows.length}` })
      return rows.length
    },
  }
}
export type Sightings = ReturnType<typeof openSightings>

export function openSupersession(parts: {
  store: Store
  sightings: Sightings
}): Pick<Registry, 'supersedeDue'> {
  const { store, sightings } = parts
  return {
    supersedeDue: (now, limit) =>
      store.write({ now, by: 'plane' }, (log) => sightings.supersedeDue({ now, limit, log })),
  }
}

function tell(log: Intent, row: CertificateRow): void {
  const certificate = certificateRecord(row)
  if (certificate !== null) log.change({ kind: 'certificate', certificate })
}
