/**
 * What holds for a data directory after any crash or fault of the disk, read by a process that is not the service:
 * the invariants of docs/architecture.md.
 */
import { createHash, X509Certificate } from 'node:crypto'
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { layout } from '#shared/layout'
import { openSqliteForReading, type Sqlite } from '#shared/sqlite'
import { placeRow } from '../../enrollment/registry/journal-place.ts'
import { type AuditRow, auditHash, GENESIS_HASH } from '../../enrollment/registry/ledger.ts'
import { replayJournal, segmentsAfter } from '../../enrollment/registry/replay.ts'
import { contents } from './registry-contents.ts'

/** What clients were told, and what was seen at the last check. */
export class Told {
  /** Certificates that a client has received, PEM by serial. */
  readonly certificates = new Map<string, string>()
  /** Devices whose final revocation, and ids of plans whose application, was acknowledged. */
  readonly revoked = new Set<string>()
  readonly applied = new Set<string>()
  /** Newest CRL number by file. */
  readonly crlNumbers = new Map<string, number>()
}

/** Queries that find nothing in a whole registry. */
const NONE: Readonly<Record<string, string>> = {
  'a use of a token without a device, or the reverse': `SELECT id FROM tokens WHERE used <>
    (SELECT count(DISTINCT device) FROM certificates WHERE certificates.token = tokens.row)`,
  'two certificates for one request': `SELECT spki FROM certificates
    GROUP BY token, predecessor, device, spki HAVING count(*) > 1`,
  'a device with two first certificates': `SELECT device FROM certificates
    WHERE token IS NOT NULL GROUP BY device HAVING count(*) > 1`,
  'a device with two active certificates': `SELECT device FROM certificates
    WHERE state = 'active' AND superseded_from IS NULL GROUP BY device HAVING count(*) > 1`,
  'a certificate that is issued and not there, or the reverse': `SELECT serial FROM certificates
    WHERE (state = 'reserved') <> (der IS NULL) AND state <> 'revoked'`,
  'a device in service without a certificate': `SELECT id FROM devices WHERE state = 'active' AND NOT EXISTS
    (SELECT 1 FROM certificates WHERE certificates.device = devices.row AND der IS NOT NULL)`,
  'a revoked certificate without its revocation': `SELECT serial FROM certificates
    WHERE state = 'revoked' AND serial NOT IN (SELECT serial FROM revocations)`,
  'a gap in the change log': `SELECT count(*) AS n FROM changes
    HAVING n <> (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'changes')`,
}

/** Faults of a data directory, in words; none when it is as it must be. The service may run meanwhile. */
export function faultsOf(data: string, told: Told): string[] {
  const { registry, journal, ca } = layout(data)
  const db = openSqliteForReading(registry, 5_000)
  try {
    return db.transaction(() => [
      ...(db.pragma('integrity_check(1)', { simple: true }) === 'ok' ? [] : ['the database is damaged']),
      ...Object.entries(NONE).flatMap(([fault, query]) => {
        const rows = db.prepare(query).all()
        return rows.length === 0 ? [] : [`${fault}: ${JSON.stringify(rows.slice(0, 3))}`]
      }),
      ...lostFaults(db, told),
      ...auditFaults(db),
      ...journalFaults(db, journal),
      ...crlFaults(join(ca, 'crl'), told),
    ])()
  } finally {
    db.close()
  }
}

function lostFaults(db: Sqlite, told: Told): string[] {
  const der = db.prepare<[string], Buffer>('SELECT der FROM certificates WHERE serial = ?').pluck()
  const lost = [...told.certificates].filter(
    ([serial, pem]) => !der.get(serial)?.equals(new X509Certificate(pem).raw),
  )
  const live = db.prepare<[string], unknown>(
    `SELECT 1 FROM certificates WHERE state <> 'revoked' AND device = (SELECT row FROM devices WHERE id = ?)`,
  )
  const back = [...told.revoked].filter((device) => live.get(device) !== undefined)
  const applied = db.prepare<[string], unknown>(
    `SELECT 1 FROM plans WHERE id = ? AND state NOT IN ('proposed', 'freezing')`,
  )
  const forgotten = [...told.applied].filter((plan) => applied.get(plan) === undefined)
  return [
    ...lost.map(([serial]) => `the registry does not know the certificate ${serial} that a client has`),
    ...back.map((device) => `the revocation of ${device} is gone`),
    ...forgotten.map((plan) => `the hold ${plan} is gone`),
  ]
}

function auditFaults(db: Sqlite): string[] {
  const changes = db
    .prepare<[number, number], string>(
      'SELECT change FROM changes WHERE position BETWEEN ? AND ? ORDER BY position',
    )
    .pluck()
  let [hash, sequence, position] = [GENESIS_HASH, 0, 0]
  for (const row of db.prepare<[], AuditRow>('SELECT * FROM audit ORDER BY sequence').iterate()) {
    sequence += 1
    if (row.sequence !== sequence || row.hash !== auditHash(hash, row))
      return [`audit entry ${sequence} does not fit`]
    hash = row.hash
    const { first_position: first, last_position: last } = row
    if (first === null || last === null) continue
    const digest = createHash('sha256')
    for (const change of changes.iterate(first, last)) digest.update(change).update('\n')
    if (first !== position + 1 || digest.digest('hex') !== row.changes_digest)
      return [`audit entry ${sequence} does not fit its changes`]
    position = last
  }
  const newest = db.prepare<[], number>('SELECT coalesce(max(position), 0) FROM changes').pluck().get()
  return newest === position ? [] : [`no audit entry for the changes after ${position}`]
}

/** The journal has what the database has, under the same number; it may have got further since. */
function journalFaults(db: Sqlite, journal: string): string[] {
  const place = placeRow(db).read()
  if (place.number === 0) return []
  try {
    const segments = [...segmentsAfter(journal, { ...place })]
    return segments.length > 0 ? [] : [`the journal ends before commit ${place.number}`]
  } catch (error) {
    return [String(error)]
  }
}

function crlFaults(directory: string, told: Told): string[] {
  if (!existsSync(directory)) return []
  const names = readdirSync(directory).filter((name) => name.endsWith('.number'))
  return names.flatMap((name) => {
    const number = Number(readFileSync(join(directory, name), 'utf8'))
    const before = told.crlNumbers.get(name) ?? 0
    told.crlNumbers.set(name, number)
    return number >= before ? [] : [`the CRL number ${name} fell from ${before} to ${number}`]
  })
}

/** The journal alone makes the same database again; the service must not run meanwhile, and keep all its segments. */
export function replayFaults(data: string): string[] {
  const { registry, journal } = layout(data)
  const scratch = mkdtempSync(join(tmpdir(), 'muster-replay-'))
  try {
    const [copy, again] = [join(scratch, 'copy.db'), join(scratch, 'again.db')]
    for (const end of ['', '-wal'])
      if (existsSync(`${registry}${end}`)) cpSync(`${registry}${end}`, `${copy}${end}`)
    replayJournal(copy, journal) // what a start does first
    replayJournal(again, journal)
    const [are, were] = [contents(copy), contents(again)]
    return Object.keys(are)
      .filter((table) => !isDeepStrictEqual(are[table], were[table]))
      .map((table) => `the table ${table} is not as the journal has it`)
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}
