import type { Reason } from '#shared/api'
import { type Sqlite, sqliteCode } from '#shared/sqlite'
import { type Holds, IN_FORCE } from './holds.ts'
import type { Registry, RevocationStatus } from './registry.ts'
import type { Store } from './store.ts'

interface IssuedRow {
  readonly issuer: string
  readonly device: string
  readonly batch: string | null
  readonly fleet: string
}

function prepare(db: Sqlite) {
  return {
    /** The issuer of a certificate that is good beyond doubt: not revoked, and no hold in force on anything at all. */
    plain: db
      .prepare<[string, string], string | null>(
        `SELECT CASE
           WHEN EXISTS (SELECT 1 FROM plans WHERE ${IN_FORCE}) OR EXISTS (SELECT 1 FROM revocations WHERE serial = ?)
           THEN NULL
           ELSE (SELECT issuer FROM certificates WHERE serial = ? AND fingerprint IS NOT NULL)
         END`,
      )
      .pluck(),
    revoked: db.prepare<[string], { issuer: string; revoked_at: number; reason: Reason }>(
      'SELECT issuer, revoked_at, reason FROM revocations WHERE serial = ?',
    ),
    /** Rises when this connection writes, and when another one has committed. */
    written: db.prepare<[], number>('SELECT total_changes()').pluck(),
    version: db.prepare<[], number>('PRAGMA data_version').pluck(),
    claimed: db.prepare<[string], { issuer: string }>(
      'SELECT issuer FROM claims WHERE serial = ? AND der IS NOT NULL',
    ),
    issued: db.prepare<[string], IssuedRow>(
      `SELECT c.issuer, d.id AS device, d.batch, d.fleet FROM certificates c JOIN devices d ON d.row = c.device
       WHERE c.serial = ? AND c.fingerprint IS NOT NULL`,
    ),
  }
}

/** What an OCSP responder says: revocations outlive their certificates, so they are looked at first. */
export function openRevocationStatus({
  store,
  holds,
}: {
  store: Store
  holds: Holds
}): Pick<Registry, 'revocationStatus' | 'stateMark'> {
  const statements = prepare(store.db)

  function statusOf(issuer: string, serial: string): RevocationStatus | null {
    const revoked = statements.revoked.get(serial)
    if (revoked?.issuer === issuer) {
      return { state: 'revoked', since: revoked.revoked_at, reason: revoked.reason }
    }
    const issued = statements.issued.get(serial)
    if (issued === undefined && statements.claimed.get(serial)?.issuer === issuer) return { state: 'good' }
    if (issued?.issuer !== issuer) return null
    const [hold] = holds.on(issued)
    return hold === undefined ? { state: 'good' } : { state: 'held', since: hold.since }
  }

  /** What another process has committed is asked once in a turn of the event loop, which never sleeps on it. */
  let version: number | undefined
  const forget = () => {
    version = undefined
  }
  function versionInThisTurn(): number | undefined {
    if (version === undefined) {
      version = statements.version.get()
      setImmediate(forget)
    }
    return version
  }

  return {
    stateMark() {
      try {
        return `${statements.written.get()} ${versionInThisTurn()}`
      } catch (error) {
        if (sqliteCode(error) !== null) return null // whoever reads next says what is wrong
        throw error
      }
    },
    async revocationStatus(issuer, serial) {
      const plain = await store.readOne(() => statements.plain.get(serial, serial))
      if (plain === issuer) return { state: 'good' }
      return store.read(() => statusOf(issuer, serial))
    },
  }
}
