import { MusterError } from '#shared/errors'
import type { Report, ReportBatch } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import type { Certificates } from './certificates.ts'
import type { CloneBook } from './clones.ts'
import type { EventLog } from './event-log.ts'
import type { Intent } from './ledger.ts'
import type { ReceiptBook } from './receipts.ts'
import type { RefusalLog } from './refusals.ts'
import type { Registry } from './registry.ts'
import type { Sightings } from './sightings.ts'
import type { Store } from './store.ts'

interface BootRow {
  readonly row: number
  readonly sequence: number
}

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    isKnown: db.prepare<[string], unknown>(
      'SELECT 1 FROM brokers WHERE id = ? AND accepted_at IS NOT NULL AND forgotten_at IS NULL',
    ),
    boot: db.prepare<[string, string], BootRow>(
      'SELECT row, sequence FROM boots WHERE broker = ? AND boot = ?',
    ),
    newestBoot: db.prepare<[string], { row: number }>('SELECT MAX(row) AS row FROM boots WHERE broker = ?'),
    insertBoot: db.prepare<[string, string]>('INSERT INTO boots (broker, boot, sequence) VALUES (?, ?, 0)'),
    take: db.prepare<[number, number]>('UPDATE boots SET sequence = ? WHERE row = ?'),
    heard: db.prepare<[string, number, number | null, number, string]>(
      'UPDATE brokers SET url = ?, sessions = ?, position = ?, last_heard_at = ? WHERE id = ?',
    ),
    connect: db.prepare<[string, number, string, number]>(
      'INSERT OR REPLACE INTO connections (broker, boot, connection, device) VALUES (?, ?, ?, ?)',
    ),
    disconnect: db.prepare<[string, number, string]>(
      'DELETE FROM connections WHERE broker = ? AND boot = ? AND connection = ?',
    ),
    disconnectOthers: db.prepare<[string, number]>('DELETE FROM connections WHERE broker = ? AND boot <> ?'),
    seen: db.prepare<[number, number]>(
      'UPDATE devices SET last_seen_at = MAX(COALESCE(last_seen_at, 0), ?) WHERE row = ?',
    ),
  }
}

export interface ReportParts {
  readonly store: Store
  readonly epoch: string
  readonly certificates: Certificates
  readonly sightings: Sightings
  readonly receipts: ReceiptBook
  readonly refusals: RefusalLog
  readonly events: EventLog
  readonly clones: CloneBook
}

interface Taking extends ReportParts {
  readonly statements: Statements
  readonly broker: string
  readonly batch: ReportBatch
  readonly overlapMs: number
  readonly now: number
  readonly log: Intent
  /** Row of the boot that the batch is from, and whether the broker has not started again since. */
  readonly boot: number
  readonly isCurrent: boolean
}

/**
 * What brokers saw. Only what it changes about certificates is audited: who connected when is presence, which is
 * neither in the change log nor in the audit log.
 */
export function openReports(parts: ReportParts): Pick<Registry, 'applyReports'> {
  const statements = prepare(parts.store.db)
  return {
    applyReports: (broker, batch, overlapMs, now) =>
      parts.store.write({ now, by: `broker:${broker}` }, (log) => {
        if (statements.isKnown.get(broker) === undefined) {
          throw new MusterError('not_found', `Cannot take reports of the broker "${broker}": it is not known`)
        }
        const boot = bootOf(statements, { broker, boot: batch.boot })
        if (boot.sequence === 0 && batch.sequence > 0) began(parts, { broker, batch, now })
        if (batch.sequence <= boot.sequence) return
        statements.take.run(batch.sequence, boot.row)
        const isCurrent = statements.newestBoot.get(broker)?.row === boot.row
        take({ ...parts, statements, broker, batch, overlapMs, now, log, boot: boot.row, isCurrent })
      }),
  }
}

/** A new boot of a broker means that the connections of its old one are gone. */
function bootOf(statements: Statements, { broker, boot }: { broker: string; boot: string }): BootRow {
  const known = statements.boot.get(broker, boot)
  if (known !== undefined) return known
  const row = Number(statements.insertBoot.run(broker, boot).lastInsertRowid)
  statements.disconnectOthers.run(broker, row)
  return { row, sequence: 0 }
}

function began(
  { events }: ReportParts,
  { broker, batch, now }: Pick<Taking, 'broker' | 'batch' | 'now'>,
): void {
  const detail = { broker, boot: batch.boot, batch: batch.sequence }
  events.add({ at: now, kind: 'broker-started', scope: `broker:${broker}`, detail })
}

/** Who says so, and in which batch. */
function sourceOf({ broker, batch }: Taking) {
  return { broker, boot: batch.boot, batch: batch.sequence }
}

function take(taking: Taking): void {
  const { statements, batch, broker, now, log } = taking
  if (taking.isCurrent) {
    const position = batch.applied?.epoch === taking.epoch ? batch.applied.position : null
    statements.heard.run(batch.url, batch.sessions, position, now, broker)
  }
  const purgedTo = purgedBy(taking)
  if (purgedTo !== null) taking.receipts.purged(broker, purgedTo)
  let sighted = 0
  for (const report of batch.reports) sighted += takeReport(taking, report)
  if (sighted > 0) log.audit({ action: 'sighting', subject: `broker:${broker} certificates:${sighted}` })
}

/** In this epoch; null when the broker does not tell. Of another epoch it has nothing to say: not before it has this one's snapshot. */
function purgedBy({ batch, epoch }: Taking): number | null {
  if (batch.purged === undefined) return null
  return batch.purged.epoch === epoch ? batch.purged.position : -1
}

/** Returns how many certificates were seen for the first time: one or none. */
function takeReport(taking: Taking, report: Report): number {
  const { broker, receipts, refusals } = taking
  const at = Math.min(report.at, taking.now) // a broker whose clock is ahead has not seen the future
  switch (report.type) {
    case 'connected':
    case 'disconnected':
      return takePresence(taking, { report, at })
    case 'refused':
      taking.events.addRefused(report.device, {
        at,
        detail: { ...sourceOf(taking), reason: report.code, address: report.address },
      })
      refusals.add({
        at,
        code: report.code,
        evidence: report.evidence,
        device: report.device,
        fingerprint: report.fingerprint,
        address: report.address,
        by: broker,
      })
      if (report.code === 'R-CLONE' && report.device !== null) {
        taking.clones.raise({ device: report.device, at, evidence: report.evidence, broker })
      }
      return 0
    case 'applied':
      receipts.fill(broker, report, purgedBy(taking))
      return 0
    default:
      return report satisfies never
  }
}

type Presence = Extract<Report, { type: 'connected' | 'disconnected' }>

function tellPresence(taking: Taking, of: { report: Presence; at: number; serial: string }): void {
  const { report, at, serial } = of
  const { type: kind, device, fingerprint, connection } = report
  const how =
    report.type === 'connected'
      ? { address: report.address, resumed: report.resumed }
      : { reason: report.reason }
  const detail = { serial, fingerprint, ...sourceOf(taking), connection, ...how }
  taking.events.add({ at, kind, scope: `device:${device}`, detail })
}

/** Reports of certificates that the registry has forgotten since are dropped. */
function takePresence(taking: Taking, { report, at }: { report: Presence; at: number }): number {
  const { statements, certificates, sightings, broker, boot, overlapMs, log } = taking
  const certificate = certificates.byFingerprint(report.fingerprint)
  if (certificate === undefined) return 0
  statements.seen.run(at, certificate.device_row)
  tellPresence(taking, { report, at, serial: certificate.serial })
  if (report.type === 'disconnected') {
    statements.disconnect.run(broker, boot, report.connection)
    return 0
  }
  if (taking.isCurrent) statements.connect.run(broker, boot, report.connection, certificate.device_row)
  if (certificate.first_seen_at !== null) return 0
  sightings.first(certificate, { at, overlapMs, log })
  return certificate.state === 'issued' ? 1 : 0
}
