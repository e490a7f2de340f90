import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { MusterError } from '#shared/errors'
import { writeFileDurably } from '#shared/files'
import type { Layout } from '#shared/layout'
import { openSqliteForReading } from '#shared/sqlite'
import { type ArchiveFile, type Manifest, writeArchive } from './archive.ts'
import { placeOf } from './replay.ts'

/** How long the copy waits for a writer, ms; readers of a WAL database hardly ever do. */
const BUSY_TIMEOUT_MS = 5_000
/** Of the CA directory: certificates, encrypted keys, what was fixed, and the numbers of CRLs. Never the passphrase. */
const CA_FILE = /\.(?:crt|key|json|number)$/

export interface BackupRequest {
  readonly layout: Layout
  /** Where the running plane keeps its journal: it is told how far the backup has got. */
  readonly journal: string
  readonly out: string
  /** Ms since 1970. */
  readonly now: number
}

export interface Backup extends Manifest {
  /** Private keys that are not encrypted stay where they are. */
  readonly leftOut: readonly string[]
}

/**
 * Makes a backup while the plane runs or not: the registry as it is at one commit, then the files of the CAs, which
 * may only be newer.
 * @throws MusterError not_found (no plane), conflict (the file is there)
 */
export function makeBackup({ layout, journal, out, now }: BackupRequest): Backup {
  if (!existsSync(layout.registry)) {
    throw new MusterError('not_found', `Cannot back up "${layout.root}": there is no registry in it`)
  }
  const beside = mkdtempSync(join(dirname(out), '.muster-backup-'))
  try {
    const copy = join(beside, 'registry.db')
    copyDatabase(layout.registry, copy)
    const { files, leftOut } = caFiles(layout.ca)
    const { number: commit } = placeOf(copy)
    const manifest = writeArchive(out, {
      madeAt: now,
      commit,
      files: [{ name: 'registry.db', path: copy }, ...files],
    })
    if (existsSync(journal))
      writeFileDurably(join(journal, `backup-${now}.json`), JSON.stringify({ madeAt: now, commit }))
    return { ...manifest, leftOut }
  } finally {
    rmSync(beside, { recursive: true, force: true })
  }
}

/** One read transaction over the whole database: writers go on meanwhile, and the copy has none of what they add. */
function copyDatabase(from: string, to: string): void {
  const db = openSqliteForReading(from, BUSY_TIMEOUT_MS)
  try {
    db.prepare('VACUUM INTO ?').run(to)
  } finally {
    db.close()
  }
}

function caFiles(directory: string): { files: ArchiveFile[]; leftOut: string[] } {
  const names = readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && CA_FILE.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()
  const leftOut = names.filter((path) => path.endsWith('.key') && !isEncrypted(path))
  const files = names.filter((path) => !leftOut.includes(path))
  return { files: files.map((path) => ({ name: `ca${path.slice(directory.length)}`, path })), leftOut }
}

/** A key file that says where the key is, in a token, gives nothing away either. */
function isEncrypted(path: string): boolean {
  const text = readFileSync(path, 'utf8')
  return (
    text.includes('BEGIN ENCRYPTED PRIVATE KEY') || (text.startsWith('pkcs11:') && !/pin-value/i.test(text))
  )
}
