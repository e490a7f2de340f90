import type { Sqlite } from '#shared/sqlite'
import type { Will } from '../mqtt/mqtt-client.ts'
import type { Subscription } from './subscriptions.ts'

/** A session that outlives its connection. */
export interface Session {
  readonly client: string
  readonly identity: string
  readonly kind: 'device' | 'service'
  readonly fleet: string
  /** Of the certificate that used it last. */
  readonly fingerprint: string
}
export interface RetainedRow {
  readonly topic: string
  readonly payload: Buffer
  readonly qos: number
  readonly owner: string | null
}
interface WillRow extends Omit<Will, 'retain' | 'clientId'> {
  readonly client: string
  readonly broker: string
  readonly retain: number
}
export type SessionRows = ReturnType<typeof prepareSessionRows>

/** What is read and written of sessions, their subscriptions and half-received messages, of wills and what is retained. */
export function prepareSessionRows(db: Sqlite) {
  const putSession = db.prepare<[string, string, string, string, string]>(
    'INSERT OR REPLACE INTO sessions (client, identity, kind, fleet, fingerprint) VALUES (?, ?, ?, ?, ?)',
  )
  const putAbsence = db.prepare<[number | null, string]>(
    'UPDATE sessions SET away_since = ? WHERE client = ?',
  )
  const life = db.prepare<[], number>('SELECT lived FROM life').pluck()
  const putLife = db.prepare<[number]>('UPDATE life SET lived = ?')
  const putSubscription = db.prepare<[string, string, number]>(
    'INSERT OR REPLACE INTO subscriptions VALUES (?, ?, ?)',
  )
  const deleteSubscription = db.prepare<[string, string]>(
    'DELETE FROM subscriptions WHERE client = ? AND filter = ?',
  )
  const putIncoming = db.prepare<[string, number]>('INSERT OR REPLACE INTO incoming VALUES (?, ?)')
  const deleteIncoming = db.prepare<[string, number]>(
    'DELETE FROM incoming WHERE client = ? AND message_id = ?',
  )
  const cleared = ['sessions', 'subscriptions', 'incoming', 'queue'].map((table) =>
    db.prepare<[string]>(`DELETE FROM ${table} WHERE client = ?`),
  )
  const clearIncoming = db.prepare<[string]>('DELETE FROM incoming WHERE client = ?')
  const putRetained = db.prepare<[string, Buffer, number, string | null]>(
    'INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?)',
  )
  const deleteRetained = db.prepare<[string]>('DELETE FROM retained WHERE topic = ?')
  const putWill = db.prepare('INSERT OR REPLACE INTO wills VALUES (?, ?, ?, ?, ?, ?, ?, ?)')
  const putPurged = db.prepare<[string, number]>('INSERT OR REPLACE INTO purged VALUES (?, ?)')
  const deleteWill = db.prepare<[string]>('DELETE FROM wills WHERE client = ?')
  return {
    sessions: () =>
      db.prepare<[], Session>('SELECT client, identity, kind, fleet, fingerprint FROM sessions').all(),
    /** Of clients that are known to be away; seconds of the broker's life. */
    absences: () =>
      db
        .prepare<[], { client: string; since: number }>(
          'SELECT client, away_since AS since FROM sessions WHERE away_since IS NOT NULL',
        )
        .all(),
    putAbsence: (client: string, since: number | null) => void putAbsence.run(since, client),
    /** Seconds that the broker has lived. */
    life: () => life.get() ?? 0,
    putLife: (seconds: number) => void putLife.run(seconds),
    subscriptions: () =>
      db
        .prepare<[], { client: string; topic: string; qos: number }>(
          'SELECT client, filter AS topic, qos FROM subscriptions',
        )
        .all(),
    incoming: () =>
      db
        .prepare<[], { client: string; messageId: number }>(
          'SELECT client, message_id AS messageId FROM incoming',
        )
        .all(),
    retained: () => db.prepare<[], RetainedRow>('SELECT * FROM retained').iterate(),
    wills: () => db.prepare<[], WillRow>('SELECT * FROM wills').all(),
    putSession: (s: Session) => void putSession.run(s.client, s.identity, s.kind, s.fleet, s.fingerprint),
    putSubscription: (client: string, s: Subscription) => void putSubscription.run(client, s.topic, s.qos),
    deleteSubscription: (client: string, filter: string) => void deleteSubscription.run(client, filter),
    putIncoming: (client: string, messageId: number) => void putIncoming.run(client, messageId),
    deleteIncoming: (client: string, messageId: number) => void deleteIncoming.run(client, messageId),
    clearIncoming: (client: string) => void clearIncoming.run(client),
    /** Session, subscriptions, half-received messages and queue; messages that are in no other queue are left. */
    deleteSession(client: string): void {
      for (const statement of cleared) statement.run(client)
    },
    putRetained: (r: RetainedRow) => void putRetained.run(r.topic, r.payload, r.qos, r.owner),
    deleteRetained: (topic: string) => void deleteRetained.run(topic),
    putWill(client: string, broker: string, will: Will): void {
      const { topic, payload, qos, retain, fingerprint = null, connection = null } = will
      putWill.run(client, broker, topic, Buffer.from(payload), qos, retain ? 1 : 0, fingerprint, connection)
    },
    purged: () =>
      db.prepare<[], { epoch: string; position: number }>('SELECT epoch, position FROM purged').all(),
    putPurged: (epoch: string, position: number) => void putPurged.run(epoch, position),
    deleteWill: (client: string) => void deleteWill.run(client),
  }
}
