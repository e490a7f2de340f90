/** A broker whose store is a file, so that it can be started again with what it has left. */
import { PassThrough } from 'node:stream'
import type { Test } from 'tap'
import { openLog } from '#shared/log'
import { openSqlite, type Sqlite } from '#shared/sqlite'
import { LIMITS, type Limits } from '../../broker/limits.ts'
import { openSessionStore } from '../../broker/store/store-open.ts'
import { STORE_MIGRATIONS } from '../../broker/store/store-schema.ts'
import { openTestBroker, type TestBroker } from './broker.ts'
import type { RawClient } from './mqtt-clients.ts'
import type { TestAuthority } from './pki.ts'

export interface DurableBroker extends TestBroker {
  readonly path: string
  /** Stops it, and starts one with the same file and the same records. */
  restart(): Promise<DurableBroker>
  /** The file as another program sees it. */
  database(): Sqlite
  /** From now on every commit with a row for this table fails; returns how to mend that. */
  breakDisk(table: string): () => void
}

interface Options {
  readonly authority: TestAuthority
  readonly path: string
  readonly limits?: Partial<Limits>
  readonly heartbeatMs?: number
  readonly expireEveryMs?: number
  readonly now?: () => number
  /** As the store counts time. */
  readonly elapsed?: () => number
}

export async function openDurableBroker(t: Test, options: Options): Promise<DurableBroker> {
  const { path, elapsed } = options
  const limits = { ...LIMITS, ...options.limits }
  const log = openLog('test', 'silent', new PassThrough().resume())
  const store = openSessionStore(path, {
    durability: 'full',
    limits,
    log,
    ...(elapsed === undefined ? {} : { elapsed }),
  })
  const broker = await openTestBroker({ ...options, store })
  let isOpen = true
  const close = async () => {
    if (!isOpen) return
    isOpen = false
    await broker.close()
  }
  t.teardown(close)
  const database = () => openSqlite(path, { busyTimeoutMs: 1_000, migrations: STORE_MIGRATIONS })
  return {
    ...broker,
    path,
    close,
    database,
    async restart() {
      await close()
      const next = await openDurableBroker(t, options)
      for (const record of broker.replica.records.values()) next.replica.put(record)
      return next
    },
    breakDisk(table) {
      const db = database()
      db.exec(`CREATE TRIGGER broken BEFORE INSERT ON ${table} BEGIN SELECT RAISE(ABORT, 'disk full'); END`)
      return () => {
        db.exec('DROP TRIGGER broken')
        db.close()
      }
    },
  }
}

/** Cuts the connection without a word. */
export async function cut(raw: RawClient): Promise<void> {
  raw.socket.destroy()
  await raw.closed
}
