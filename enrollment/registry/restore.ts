import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { makeDirectory } from '#shared/directory'
import { isMusterError, MusterError } from '#shared/errors'
import { syncDirectory, writeFileDurably } from '#shared/files'
import type { Layout } from '#shared/layout'
import { lockDirectory, openSqlite, type Sqlite } from '#shared/sqlite'
import { type Archive, openArchive } from './archive.ts'
import { Journal } from './journal.ts'
import { readSegment, segmentPaths } from './journal-lines.ts'
import { type KnownElsewhere, type KnownRevocation, knownElsewhere } from './known-elsewhere.ts'
import { placeOf, replayJournal } from './replay.ts'
import { MIGRATIONS } from './schema.ts'
import { BUSY_TIMEOUT_MS, Store } from './store.ts'

export interface RestoreRequest {
  readonly layout: Layout
  /** The journal that goes on from the backup. */
  readonly journal: string
  readonly backup: string
  readonly acceptLoss: boolean
  /** A new random id: brokers take a snapshot when it changes. */
  readonly epoch: string
  /** Ms since 1970. */
  readonly now: number
}

export interface Restored {
  /** When the backup was made, ms. */
  readonly madeAt: number
  /** Commits of the journal that the backup did not have. */
  readonly replayed: number
  /** Serials that were issued and that the registry no longer knows: brokers refuse them. */
  readonly lost: readonly string[]
  /** Serials whose revocation the registry did not know, and knows again. */
  readonly revokedAgain: readonly string[]
}

/** Longest validity that a certificate of ours has when nothing says it: a CRL does not, ms. */
const UNKNOWN_VALIDITY_MS = 10 * 365 * 86_400_000

/**
 * Puts a backup and the journal into a data directory whose plane is stopped. What the plane had is moved aside, and
 * only when everything else is done: a restore that is cut short is begun again.
 * @throws MusterError not_found, check_failed (not whole; something would be lost and `acceptLoss` is false),
 *   directory_in_use, conflict (the directory holds another authority)
 */
export async function restoreBackup(request: RestoreRequest): Promise<Restored> {
  const { layout } = request
  const archive = openArchive(request.backup)
  try {
    for (const path of [layout.root, layout.ca, layout.enrollment]) makeDirectory(path)
    const lock = lockDirectory(join(layout.enrollment, 'lock.db'))
    try {
      checkAuthority(archive, layout)
      const restored = await restoreRegistry(archive, request)
      restoreCa(archive, layout)
      replaceRegistry(request)
      return restored
    } finally {
      lock.release()
    }
  } finally {
    archive.close()
  }
}

/** The registry beside the one that is there. */
function besideOf({ registry }: Layout): string {
  return `${registry}.restoring`
}

async function restoreRegistry(archive: Archive, request: RestoreRequest): Promise<Restored> {
  const { layout, journal, epoch, now } = request
  const path = besideOf(layout)
  for (const end of ['', '-wal', '-shm']) rmSync(`${path}${end}`, { force: true })
  archive.extract('registry.db', path)
  const from = placeOf(path).number
  const gap = replay(path, request)
  const replayed = placeOf(path).number - from
  const known = knownElsewhere(layout, journal)
  const db = openSqlite(path, { busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: MIGRATIONS })
  const lost = lostSerials(db, known)
  const forgotten = forgottenRevocations(db, known)
  const { madeAt } = archive.manifest
  const isShort = isShorterThanHead(db, layout)
  const loss = { gap, lost, forgotten, madeAt }
  if (!request.acceptLoss && (gap !== null || isShort || lost.length > 0 || forgotten.length > 0)) {
    db.close()
    throw lossError(loss)
  }
  if (gap !== null) setJournalAside(journal, epoch)
  if (isShort) renameSync(layout.auditHead, `${layout.auditHead}.before-${epoch}`)
  const store = new Store(db, { journal: new Journal(db, journal) })
  try {
    await store.write({ now, by: 'plane' }, (log) => {
      db.prepare(`UPDATE meta SET value = ? WHERE name = 'epoch'`).run(epoch)
      db.prepare('DELETE FROM connections').run() // who is connected is not known any more
      for (const revocation of forgotten) revokeAgain(db, revocation, now)
      log.audit({
        action: 'registry.restore',
        subject: `epoch:${epoch} lost:${lost.length} revoked:${forgotten.length}`,
      })
    })
  } finally {
    await store.close()
  }
  return { madeAt, replayed, lost, revokedAgain: forgotten.map(({ serial }) => serial) }
}

/** Null when the journal goes on from the backup and is whole; otherwise why it does not. */
function replay(path: string, { journal }: RestoreRequest): string | null {
  const segments = segmentPaths(journal)
  if (segments.length === 0) return `there is no journal in "${journal}"`
  try {
    const { from } = replayJournal(path, journal)
    const last = segments.at(-1)
    const segment = last === undefined ? null : readSegment(last)
    const end = segment ? (segment.commits.at(-1)?.place.number ?? segment.head.first - 1) : null
    return end !== null && end < from.number ? `the journal in "${journal}" ends before the backup` : null
  } catch (error) {
    if (!isMusterError(error, 'directory_unusable')) throw error
    return error.message
  }
}

/** The signed head of the audit log remembers how long it was. */
function isShorterThanHead(db: Sqlite, { auditHead }: Layout): boolean {
  if (!existsSync(auditHead)) return false
  try {
    const { sequence, hash } = JSON.parse(readFileSync(auditHead, 'utf8')) as {
      sequence: number
      hash: string
    } // audit-head.ts
    const has = db.prepare<[number, string], unknown>('SELECT 1 FROM audit WHERE sequence = ? AND hash = ?')
    return has.get(sequence, hash) === undefined
  } catch {
    return false // a damaged head says nothing here; `muster audit verify` reports it
  }
}

function lostSerials(db: Sqlite, { issued }: KnownElsewhere): string[] {
  const isKnown = db.prepare<[string], unknown>(
    'SELECT 1 FROM certificates WHERE serial = ? AND fingerprint IS NOT NULL',
  )
  return [...issued].filter((serial) => isKnown.get(serial) === undefined).sort()
}

function forgottenRevocations(db: Sqlite, { revoked }: KnownElsewhere): KnownRevocation[] {
  const isKnown = db.prepare<[string], unknown>('SELECT 1 FROM revocations WHERE serial = ?')
  return [...revoked.values()].filter(({ serial }) => isKnown.get(serial) === undefined)
}

function revokeAgain(db: Sqlite, revocation: KnownRevocation, now: number): void {
  const { issuer, serial, revokedAt, reason } = revocation
  const certificate = db
    .prepare<[string], { not_after: number }>('SELECT not_after FROM certificates WHERE serial = ?')
    .get(serial)
  const notAfter = certificate?.not_after ?? revocation.notAfter ?? now + UNKNOWN_VALIDITY_MS
  db.prepare(
    'INSERT INTO revocations (issuer, serial, revoked_at, reason, not_after) VALUES (?, ?, ?, ?, ?)',
  ).run(issuer, serial, revokedAt, reason, notAfter)
  db.prepare(`UPDATE certificates SET state = 'revoked', revoked_at = ?, reason = ? WHERE serial = ?`).run(
    revokedAt,
    reason,
    serial,
  )
}

function lossError(loss: {
  gap: string | null
  lost: readonly string[]
  forgotten: readonly KnownRevocation[]
  madeAt: number
}): MusterError {
  const since = new Date(loss.madeAt).toISOString()
  const why = loss.gap ?? 'the journal is not the newest'
  const counts = `known to be missing: ${loss.lost.length} certificate(s), ${loss.forgotten.length} revocation(s)`
  return new MusterError(
    'check_failed',
    `Cannot restore without losing what was committed after ${since}: ${why}; ${counts}; fix: give the journal with --journal, or add --accept-loss`,
    { evidence: { lost: loss.lost.length, revocations: loss.forgotten.length } },
  )
}

/** It does not go on from what was restored; its serials may still be of use. */
function setJournalAside(journal: string, epoch: string): void {
  const paths = segmentPaths(journal)
  if (paths.length === 0) return
  const aside = join(journal, `before-${epoch}`)
  mkdirSync(aside, { recursive: true, mode: 0o700 })
  for (const path of paths) renameSync(path, join(aside, path.slice(journal.length + 1)))
  syncDirectory(aside)
  syncDirectory(journal)
}

/** The same authority, or none: a registry says nothing about the certificates of another. @throws MusterError conflict */
function checkAuthority(archive: Archive, layout: Layout): void {
  const path = join(layout.ca, 'authority.json')
  if (!existsSync(path)) return
  const rootOf = (content: Buffer) => (JSON.parse(content.toString('utf8')) as { root: string }).root // ca-directory.ts
  if (rootOf(readFileSync(path)) === rootOf(archive.read('ca/authority.json'))) return
  throw new MusterError('conflict', `Cannot restore into "${layout.root}": it holds another authority`)
}

/** What is there is no older than the backup and stays; the numbers of CRLs never fall. */
function restoreCa(archive: Archive, layout: Layout): void {
  const files = archive.manifest.files.filter(({ name }) => name.startsWith('ca/'))
  // authority.json last: from then on there is an authority
  for (const { name } of files.toSorted(
    (a, b) => Number(a.name.endsWith('.json')) - Number(b.name.endsWith('.json')),
  )) {
    const path = join(layout.ca, ...name.split('/').slice(1))
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    if (!existsSync(path)) writeFileDurably(path, archive.read(name), path.endsWith('.key') ? 0o600 : 0o644)
    else if (path.endsWith('.number')) {
      const numbers = [readFileSync(path), archive.read(name)].map(
        (text) => Number.parseInt(text.toString('utf8'), 10) || 0,
      )
      writeFileDurably(path, `${Math.max(...numbers)}\n`)
    }
  }
}

/** What was there is kept beside it. */
function replaceRegistry({ layout, now }: RestoreRequest): void {
  const aside = join(layout.enrollment, `replaced-${now}`)
  for (const end of ['', '-wal', '-shm']) {
    if (!existsSync(`${layout.registry}${end}`)) continue
    mkdirSync(aside, { recursive: true, mode: 0o700 })
    renameSync(`${layout.registry}${end}`, join(aside, `registry.db${end}`))
  }
  renameSync(besideOf(layout), layout.registry)
  syncDirectory(layout.enrollment)
}
