/** Whether a loaded device has the rows that a really enrolled one has. */
import type { Change } from '#shared/feed'
import { openSqliteForReading } from '#shared/sqlite'
import { type Pattern, patternOf, type Row } from './registry-load.ts'

/** Columns whose values are of the one device; of all others the values must be the same. */
const OWN_COLUMNS: Readonly<Record<string, readonly string[]>> = {
  devices: ['row', 'id', 'created_at', 'last_seen_at'],
  certificates: [
    ...['row', 'serial', 'fingerprint', 'device', 'spki', 'line', 'der', 'created_at'],
    ...['not_before', 'not_after', 'renew_after', 'renew_before'],
  ],
  changes: ['position', 'at', 'change'],
  events: ['sequence', 'at', 'scope', 'detail'],
  event_counts: ['device'],
  audit: ['sequence', 'at', 'by', 'subject', 'first_position', 'last_position', 'changes_digest', 'hash'],
}

/**
 * Compares the rows of a loaded device with those of one that has really enrolled, column by column: the same type
 * and length everywhere, the same value wherever it is not of the one device.
 * @returns what differs, `table.column`; nothing when the loader is honest
 */
export function differences(
  path: string,
  { loaded, enrolled }: { loaded: string; enrolled: string },
): string[] {
  const db = openSqliteForReading(path, 1_000)
  try {
    const [one, other] = [patternOf(db, loaded), patternOf(db, enrolled)]
    const areKept = one.event !== null && other.event !== null
    const rows = (of: Pattern): [string, Row][] => [
      ['devices', of.device],
      ['certificates', of.certificate],
      ...of.changes.map((row): [string, Row] => ['changes', { ...row, kind: kindOf(row) }]),
      ...of.audit.map((row): [string, Row] => ['audit', { ...row }]),
      ['event_counts', of.eventCount],
      ...(of.event && areKept ? [['events', of.event] satisfies [string, Row]] : []),
    ]
    const others = rows(other)
    return rows(one).flatMap(([table, row], index) => {
      const [name, beside = {}] = others[index] ?? []
      if (name !== table) return [table]
      return Object.keys({ ...row, ...beside })
        .filter(
          (column) => !isAlike(row[column], beside[column], OWN_COLUMNS[table]?.includes(column) ?? false),
        )
        .map((column) => `${table}.${column}`)
    })
  } finally {
    db.close()
  }
}

function kindOf({ change }: Row): string {
  return (JSON.parse(String(change)) as Change).kind // written by the ledger only
}

function isAlike(one: Row[string] | undefined, other: Row[string] | undefined, isOwn: boolean): boolean {
  if (!isOwn) return one === other
  if (typeof one !== typeof other) return false
  if (typeof one === 'string') return one.length === (other as string).length // the same type, above
  return Buffer.isBuffer(one) === Buffer.isBuffer(other)
}
