import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import type { Reason } from '#shared/api'
import type { Layout } from '#shared/layout'
import { openSqliteForReading } from '#shared/sqlite'
import { readCrlEntries } from '../ca/read-crl.ts'
import { type Commit, segmentPaths } from './journal-lines.ts'

/** A final revocation as some remnant knows it. */
export interface KnownRevocation {
  readonly issuer: string
  readonly serial: string
  readonly revokedAt: number
  readonly reason: Reason
  /** Null on a CRL, which does not say it. */
  readonly notAfter: number | null
}

/** What the remnants of a plane say was issued and revoked. */
export interface KnownElsewhere {
  readonly issued: ReadonlySet<string>
  readonly revoked: ReadonlyMap<string, KnownRevocation>
}

/** Reads whatever can still be read: the database that is there, every line of the journal, the published CRLs. */
export function knownElsewhere(layout: Layout, journal: string): KnownElsewhere {
  const issued = new Set<string>()
  const revoked = new Map<string, KnownRevocation>()
  const add = (revocation: KnownRevocation) => void revoked.set(revocation.serial, revocation)
  fromCrls(join(layout.ca, 'crl'), add)
  fromJournal(journal, { issued, add })
  fromDatabase(layout.registry, { issued, add })
  return { issued, revoked }
}

type Add = (revocation: KnownRevocation) => void

function fromCrls(directory: string, add: Add): void {
  if (!existsSync(directory)) return
  for (const name of readdirSync(directory).filter((name) => name.endsWith('.crl'))) {
    const entries = ignoringDamage(() => readCrlEntries(readFileSync(join(directory, name)))) ?? []
    for (const entry of entries) add({ ...entry, issuer: basename(name, '.crl'), notAfter: null })
  }
}

/** Line by line, whether or not they follow one another: what is looked for are serials, not a state. */
function fromJournal(directory: string, { issued, add }: { issued: Set<string>; add: Add }): void {
  for (const path of segmentPaths(directory)) {
    const [heading = '', ...lines] = readFileSync(path, 'utf8').split('\n')
    const head = ignoringDamage(
      () => JSON.parse(heading.slice(33)) as { tables: Record<string, { columns: string[] }> },
    )
    for (const line of lines) {
      const commit = ignoringDamage(() => JSON.parse(line.slice(33)) as Commit)
      for (const [table, ...cells] of commit?.rows ?? []) {
        const columns = head?.tables[table]?.columns ?? []
        const row = Object.fromEntries(columns.map((column, index) => [column, cells[index]]))
        if (table === 'certificates' && row.fingerprint !== null) issued.add(String(row.serial))
        if (table === 'revocations') add(revocationOf(row as unknown as RevocationRow)) // the table's own columns
      }
    }
  }
}

function fromDatabase(path: string, { issued, add }: { issued: Set<string>; add: Add }): void {
  if (!existsSync(path)) return
  ignoringDamage(() => {
    const db = openSqliteForReading(path, 1_000)
    try {
      const serials = db.prepare<[], { serial: string }>(
        'SELECT serial FROM certificates WHERE fingerprint IS NOT NULL',
      )
      for (const { serial } of serials.iterate()) issued.add(serial)
      for (const row of db.prepare<[], RevocationRow>('SELECT * FROM revocations').iterate())
        add(revocationOf(row))
    } finally {
      db.close()
    }
  })
}

interface RevocationRow {
  readonly issuer: string
  readonly serial: string
  readonly revoked_at: number
  readonly reason: Reason
  readonly not_after: number
}

function revocationOf(row: RevocationRow): KnownRevocation {
  const { issuer, serial, revoked_at: revokedAt, reason, not_after: notAfter } = row
  return { issuer, serial, revokedAt, reason, notAfter }
}

function ignoringDamage<T>(read: () => T): T | null {
  try {
    return read()
  } catch {
    return null // a remnant: what cannot be read is not known
  }
}
