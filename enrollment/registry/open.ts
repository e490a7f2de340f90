import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { isMusterError, MusterError } from '#shared/errors'
import { SERVICES_FLEET } from '#shared/identity/device'
import { openSqlite, type Sqlite, sqliteCode } from '#shared/sqlite'
import { DEFAULT_FLEET, SERVICES_POLICY } from './defaults.ts'
import { openFleets } from './fleets.ts'
import { Journal } from './journal.ts'
import { segmentPaths } from './journal-lines.ts'
import { ROWS_IN_TURN } from './long-reads.ts'
import type { Registry } from './registry.ts'
import { replayJournal } from './replay.ts'
import { openReserve } from './reserve.ts'
import { MIGRATIONS } from './schema.ts'
import { sqliteRegistry } from './sqlite.ts'
import { BUSY_TIMEOUT_MS, isDamage, RESTORE, Store } from './store.ts'

/**
 * Pages in the WAL before they are brought into the database, 16 MiB: a page that is written again and again on the way,
 * as those of the indexes on random keys are, is brought there once. SQLite's own 1000 wrote a fifth more in all.
 */
const CHECKPOINT_PAGES = 4_000

export interface RegistryOptions {
  /** Fixed when the registry is made: it is in every certificate. */
  readonly trustDomain: string
  /** A new random id, at most 64 characters; used when the registry is made. A restored registry gets another. */
  readonly epoch: string
  readonly now: number
  /** Directory of the journal, of which this instance must be the only writer; none without it. */
  readonly journal?: string
  /** Rows that one turn of the event loop reads at most; a test takes few. */
  readonly rowsInTurn?: number
}

/**
 * Opens the registry in an SQLite file, and makes it when there is none, with the fleets `default` and `services`.
 * Several instances, also of several processes, may be open on one file.
 * @throws MusterError directory_unusable when the file cannot be used, belongs to another trust domain, or does not
 *   belong to the journal
 */
export async function openRegistry(path: string, options: RegistryOptions): Promise<Registry> {
  try {
    return await openWhole(path, options)
  } catch (error) {
    const cause = isMusterError(error) ? error.cause : error
    if (!isDamage(sqliteCode(cause))) throw error
    throw new MusterError(
      'directory_unusable',
      `Cannot open the registry "${path}": it is damaged (${sqliteCode(cause)}); ${RESTORE}`,
      { cause },
    )
  }
}

async function openWhole(path: string, options: RegistryOptions): Promise<Registry> {
  if (options.journal !== undefined) catchUp(path, options.journal)
  const db = openSqlite(path, { busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: MIGRATIONS })
  try {
    db.pragma(`wal_autocheckpoint = ${CHECKPOINT_PAGES}`)
    const store = new Store(
      db,
      options.journal === undefined ? {} : besideOf(db, { path, journal: options.journal }),
    )
    const { epoch, trustDomain } = await prepareRegistry(store, options)
    if (trustDomain !== options.trustDomain) {
      throw new MusterError(
        'directory_unusable',
        `Cannot open the registry "${path}": it belongs to the trust domain ${trustDomain}, not ${options.trustDomain}`,
      )
    }
    const { rowsInTurn = ROWS_IN_TURN } = options
    return sqliteRegistry({ store, path, rowsInTurn, epoch, trustDomain })
  } catch (error) {
    db.close()
    throw error
  }
}

/** Both reserves, so that it does not matter which of two disks is full. */
function besideOf(db: Sqlite, { path, journal }: { path: string; journal: string }) {
  const reserve = openReserve([join(dirname(path), 'reserve'), join(journal, 'reserve')])
  return { journal: new Journal(db, journal), reserve }
}

async function prepareRegistry(store: Store, options: RegistryOptions) {
  const get = store.db.prepare<[string], { value: string }>('SELECT value FROM meta WHERE name = ?')
  const put = store.db.prepare<[string, string]>('INSERT INTO meta (name, value) VALUES (?, ?)')
  const fleets = openFleets(store.db)
  return store.write({ now: options.now, by: 'plane' }, (log) => {
    const epoch = get.get('epoch')?.value
    const trustDomain = get.get('trust_domain')?.value
    if (epoch !== undefined && trustDomain !== undefined) return { epoch, trustDomain }
    put.run('epoch', options.epoch)
    put.run('trust_domain', options.trustDomain)
    const at = { now: options.now, log }
    fleets.insert({ id: DEFAULT_FLEET }, at)
    fleets.insert({ id: SERVICES_FLEET, policy: SERVICES_POLICY }, at)
    log.audit({ action: 'registry.create', subject: `trust-domain:${options.trustDomain}` })
    return { epoch: options.epoch, trustDomain: options.trustDomain }
  })
}

/** A commit that was cut short after it was in the journal is made good; a database that is gone is not made anew. */
function catchUp(path: string, journal: string): void {
  if (segmentPaths(journal).length === 0) return
  if (existsSync(path)) return void replayJournal(path, journal)
  throw new MusterError(
    'directory_unusable',
    `Cannot open the registry "${path}": it is gone, and its journal is not; fix: muster ca restore <backup>`,
  )
}
