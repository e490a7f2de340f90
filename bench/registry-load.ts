import { createHash, randomBytes } from 'node:crypto'
import { MusterError } from '#shared/errors'
import { openSqlite, openSqliteForReading, type Sqlite } from '#shared/sqlite'
import { EVENTS_KEPT } from '../enrollment/registry/event-log.ts'
import { type AuditRow, auditHash } from '../enrollment/registry/ledger.ts'
import { MIGRATIONS } from '../enrollment/registry/schema.ts'

/** What one enrollment adds to a registry; an enrollment that adds anything else is none that this loader knows. */
const ADDED = {
  ...{ devices: 1, certificates: 1, changes: 2, audit: 1 },
  ...{ events: 1, event_counts: 1 },
} as const satisfies Record<string, number>
/** Devices in one transaction. */
const SLICE = 50_000
const CACHE_KIB = 1_048_576

export type Row = Record<string, string | number | Buffer | null>

/** How many rows each table has. */
export function rowCounts(path: string): Record<string, number> {
  const db = openSqliteForReading(path, 1_000)
  try {
    const tables = db
      .prepare<[], string>(`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'`)
      .pluck()
      .all()
    const count = (table: string) =>
      db.prepare<[], number>(`SELECT COUNT(*) FROM ${table}`).pluck().get() ?? 0
    return Object.fromEntries(tables.map((table) => [table, count(table)]))
  } finally {
    db.close()
  }
}

/** @throws MusterError check_failed when an enrollment writes other rows than those that are loaded */
export function checkAdded(before: Record<string, number>, after: Record<string, number>): void {
  const added = Object.fromEntries(
    Object.entries(after).flatMap(([table, count]) =>
      count === before[table] ? [] : [[table, count - (before[table] ?? 0)]],
    ),
  )
  const isKnown = Object.entries({ ...ADDED, ...added }).every(
    ([table]) => added[table] === (ADDED as Record<string, number>)[table],
  )
  if (isKnown) return
  throw new MusterError(
    'check_failed',
    `Cannot load a registry: an enrollment adds ${JSON.stringify(added)}, and the loader knows ${JSON.stringify(ADDED)}`,
  )
}

/** The rows of one device that has enrolled, and where in its certificate stand the things that are its own. */
export interface Pattern {
  readonly device: Row
  readonly certificate: Row
  readonly changes: readonly Row[]
  readonly audit: readonly AuditRow[]
  /** Null when it is no longer kept: the log of events is bounded. */
  readonly event: Row | null
  readonly eventCount: Row
  readonly der: Buffer
  readonly id: string
  readonly serial: string
  /** Of the 64 octets of the point in its SubjectPublicKeyInfo. */
  readonly key: Buffer
}

/**
 * Fills a registry that nobody has open with devices like one that has really enrolled, each as if it had enrolled
 * with the same token: the same rows in the same order, under ids, serials, keys and fingerprints of their own, with
 * every change, every audit entry and the whole hash chain. Their certificates are copies with these things
 * exchanged, and the signature of the original. Only the journal is left as it was. What makes it fast: one
 * transaction for 50 000 devices, no fsync, and indexes that are built afterwards.
 */
export function loadDevices(path: string, { like, count }: { like: string; count: number }): void {
  const db = openSqlite(path, { busyTimeoutMs: 1_000, migrations: MIGRATIONS })
  try {
    db.pragma('synchronous = OFF')
    db.pragma(`cache_size = -${CACHE_KIB}`)
    const pattern = patternOf(db, like)
    const indexes = dropIndexes(db)
    const load = loader(db, pattern)
    for (let from = 1; from <= count; from += SLICE) {
      db.transaction(() => {
        for (let number = from; number < Math.min(from + SLICE, count + 1); number++) load(number)
      })()
    }
    db.prepare('UPDATE tokens SET used = used + ? WHERE row = ?').run(count, pattern.certificate.token)
    db.prepare('DELETE FROM events WHERE sequence <= (SELECT MAX(sequence) FROM events) - ?').run(EVENTS_KEPT)
    for (const sql of indexes) db.exec(sql)
    db.pragma('wal_checkpoint(TRUNCATE)')
  } finally {
    db.close()
  }
}

/** Those of the large tables; returns the statements that make them again. */
function dropIndexes(db: Sqlite): string[] {
  const indexes = db
    .prepare<[], { name: string; sql: string }>(
      `SELECT name, sql FROM sqlite_schema
       WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ('devices', 'certificates', 'changes', 'audit', 'events')`,
    )
    .all()
  for (const { name } of indexes) db.exec(`DROP INDEX ${name}`)
  return indexes.map(({ sql }) => sql)
}

export function patternOf(db: Sqlite, id: string): Pattern {
  const one = (sql: string, value: unknown) => {
    const row = db.prepare<[unknown], Row>(sql).get(value)
    if (row === undefined)
      throw new MusterError('not_found', `Cannot load devices like "${id}": ${sql} finds none`)
    return row
  }
  const device = one('SELECT * FROM devices WHERE id = ?', id)
  const certificate = one('SELECT * FROM certificates WHERE device = ?', device.row)
  const serial = String(certificate.serial)
  const entry = one('SELECT * FROM audit WHERE subject = ?', `device:${id} certificate:${serial}`)
  const audit = [entry as unknown as AuditRow] // its columns
  const event = db.prepare<[string], Row>('SELECT * FROM events WHERE scope = ?').get(`device:${id}`) ?? null
  const eventCount = one('SELECT * FROM event_counts WHERE device = ?', device.row)
  const { first_position: first, last_position: last } = entry
  const changes = db
    .prepare<[unknown, unknown], Row>(
      'SELECT * FROM changes WHERE position BETWEEN ? AND ? ORDER BY position',
    )
    .all(first, last)
  const der = certificate.der
  if (!Buffer.isBuffer(der)) throw new TypeError('the certificate of the pattern is not signed')
  return { device, certificate, changes, audit, event, eventCount, der, id, serial, key: pointOf(der) }
}

/** SubjectPublicKeyInfo of P-256 always begins so, up to the first octet of the point. */
const P256_SPKI = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex')

function pointOf(der: Buffer): Buffer {
  const start = der.indexOf(P256_SPKI)
  if (start === -1) throw new TypeError('the certificate of the pattern is not for a P-256 key')
  return Buffer.from(der.subarray(start + P256_SPKI.length, start + P256_SPKI.length + 64))
}

function loader(db: Sqlite, pattern: Pattern): (number: number) => void {
  const device = inserter(db, 'devices', pattern.device)
  const certificate = inserter(db, 'certificates', pattern.certificate)
  if (pattern.event === null) throw new TypeError('the enrollment of the pattern is no event')
  const { sequence: _, ...event } = pattern.event // given by the table
  const [tell, counted] = [inserter(db, 'events', event), inserter(db, 'event_counts', pattern.eventCount)]
  const newest = (table: string) => db.prepare<[], number>(`SELECT MAX(row) FROM ${table}`).pluck().get() ?? 0
  let row = newest('devices')
  let certificateRow = newest('certificates')
  const exchanged = textOf(pattern)
  const der = derOf(pattern)
  const log = logger(db, pattern)
  return (number) => {
    const own = ownOf(pattern, number)
    const octets = der(own)
    const fingerprint = createHash('sha256').update(octets).digest('hex')
    const { id, serial, spki } = own
    row += 1
    certificateRow += 1
    device({ ...pattern.device, row, id })
    const ofDevice = { row: certificateRow, device: row, line: id }
    certificate({ ...pattern.certificate, ...ofDevice, serial, fingerprint, spki, der: octets })
    const text = exchanged({ ...own, fingerprint })
    tell({ ...event, scope: text(String(event.scope)), detail: text(String(event.detail)) })
    counted({ ...pattern.eventCount, device: row })
    log(text)
  }
}

/** Writes the changes and the audit entries of one device, each entry chained to the one before it. */
function logger(db: Sqlite, pattern: Pattern): (text: (of: string) => string) => void {
  const change = inserter(db, 'changes', pattern.changes[0] ?? {})
  const audit = inserter(db, 'audit', { ...pattern.audit[0] })
  const newest = db.prepare<[string], number>('SELECT seq FROM sqlite_sequence WHERE name = ?').pluck()
  let position = newest.get('changes') ?? 0
  let sequence = newest.get('audit') ?? 0
  let hash =
    db.prepare<[number], string>('SELECT hash FROM audit WHERE sequence = ?').pluck().get(sequence) ?? ''
  return (text) => {
    const digest = createHash('sha256')
    const first = position + 1
    for (const of of pattern.changes) {
      const told = text(String(of.change))
      digest.update(told).update('\n')
      position += 1
      change({ ...of, position, change: told })
    }
    const covered = { first_position: first, last_position: position, changes_digest: digest.digest('hex') }
    for (const of of pattern.audit) {
      sequence += 1
      const who = { by: text(of.by), subject: text(of.subject) }
      const entry = { ...of, ...who, sequence, ...(of.first_position === null ? {} : covered) }
      hash = auditHash(hash, entry)
      audit({ ...entry, hash })
    }
  }
}

function inserter(db: Sqlite, table: string, like: Row): (row: Row) => void {
  const names = Object.keys(like)
  const statement = db.prepare(
    `INSERT INTO ${table} (${names.join(', ')}) VALUES (${names.map(() => '?').join(', ')})`,
  )
  return (row) => void statement.run(...names.map((name) => row[name]))
}

/** What is exchanged, each as long as in the pattern. */
interface Own {
  readonly id: string
  readonly serial: string
  readonly spki: string
  readonly key: Buffer
}

/** The serial ends as that of the pattern does: its end says which CRL the certificate names. */
function ownOf({ id, serial }: Pattern, number: number): Own {
  const random = randomBytes(16 + 32 + 64)
  return {
    id: id.slice(0, -7) + String(number).padStart(7, '0'),
    serial: `4${random.toString('hex', 0, 15).slice(1)}${serial.slice(-2)}`,
    spki: random.toString('hex', 16, 48),
    key: random.subarray(48),
  }
}

function textOf({
  id,
  serial,
  certificate,
}: Pattern): (own: Own & { fingerprint: string }) => (text: string) => string {
  const fingerprint = String(certificate.fingerprint)
  return (own) => (text) =>
    text.replaceAll(id, own.id).replaceAll(serial, own.serial).replaceAll(fingerprint, own.fingerprint)
}

/** Where serial, id and key stand is the same in all, because all are of the same length. */
function derOf({ der, id, serial, key }: Pattern): (own: Own) => Buffer {
  const serialAt = der.indexOf(Buffer.from(serial, 'hex'))
  const keyAt = der.indexOf(key)
  const ids: number[] = []
  for (let at = der.indexOf(id); at !== -1; at = der.indexOf(id, at + 1)) ids.push(at)
  return (own) => {
    const copy = Buffer.from(der)
    copy.write(own.serial, serialAt, 'hex')
    for (const at of ids) copy.write(own.id, at, 'latin1')
    own.key.copy(copy, keyAt)
    return copy
  }
}
