import type { Cursor, PurgeRecord, Scope } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'

/** What of a device's is to be forgotten: whatever was stored before this position of this epoch was applied. */
export interface PurgeOrder extends Cursor {
  /** What it has retained as well. */
  readonly retained: boolean
}

/** An order as it is kept: of a scope, where a list of devices is the members of a hold. */
interface OrderRow extends Cursor {
  readonly kind: Scope['kind']
  readonly id: string
  readonly retained: 0 | 1
  readonly at: number
}

const ON_CONFLICT = `ON CONFLICT DO UPDATE SET epoch = excluded.epoch, position = excluded.position, at = excluded.at
  WHERE excluded.position > position`

/** Epoch of orders in a state that does not know its own yet. */
export const OWN_EPOCH = ''

/** Keeps of each scope the newest order; one that takes more makes an older one that takes less needless. */
export function prepareOrders(db: Sqlite) {
  const put = db.prepare<[OrderRow]>(
    `INSERT INTO purges (kind, id, retained, epoch, position, at) VALUES (@kind, @id, @retained, @epoch, @position, @at)
     ${ON_CONFLICT}`,
  )
  const dropLesser = db.prepare<[OrderRow]>(
    'DELETE FROM purges WHERE kind = @kind AND id = @id AND retained < @retained AND position <= @position',
  )
  const own = db.prepare<[string]>(`UPDATE purges SET epoch = ? WHERE epoch = '${OWN_EPOCH}'`)
  const order = (row: OrderRow) => {
    put.run(row)
    dropLesser.run(row)
  }
  return {
    /** A hold comes into force: by itself it is an order. */
    byHold(hold: { id: string; scope: Scope; purgeRetained?: boolean }, at: Cursor & { at: number }): void {
      const { kind, id } = hold.scope
      order({ ...at, kind, id: kind === 'plan' ? hold.id : id, retained: hold.purgeRetained ? 1 : 0 })
    },
    /** One of a plan that is over. */
    byRecord({ scope, devices, epoch, position, at, retained }: PurgeRecord): void {
      const row = { epoch, position, at, retained: retained ? 1 : 0 } as const
      if (devices === undefined) order({ ...row, ...scope })
      else for (const id of devices) order({ ...row, kind: 'device', id })
    },
    /** Those that were noted under {@link OWN_EPOCH} are of this one. */
    own: (epoch: string) => void own.run(epoch),
  }
}

/** Before members of a hold that has ended are deleted, what it has ordered is spread to them. */
export function prepareSpread(db: Sqlite) {
  const spread = db.prepare<[string, number, string]>(
    `INSERT INTO purges (kind, id, retained, epoch, position, at)
     SELECT 'device', m.device, p.retained, p.epoch, p.position, p.at
     FROM (SELECT device FROM members WHERE hold = ? ORDER BY device LIMIT ?) m, purges p
     WHERE p.kind = 'plan' AND p.id = ? ${ON_CONFLICT}`,
  )
  const drop = db.prepare<[string]>(`DELETE FROM purges WHERE kind = 'plan' AND id = ?`)
  return {
    /** Of the first `limit` members by id. */
    toMembers: (hold: string, limit: number) => void spread.run(hold, limit, hold),
    drop: (hold: string) => void drop.run(hold),
  }
}

/** Up to where orders were carried out, by epoch. */
export type Marks = ReadonlyMap<string, number>

export function isDue({ epoch, position }: Cursor, marks: Marks): boolean {
  return position > (marks.get(epoch) ?? -1)
}

/** Of each epoch the later mark. After a restore what is known of an older epoch may end before what was carried out. */
export function latest(some: Marks, others: Marks): Marks {
  const news = [...others].filter(([epoch, position]) => isDue({ epoch, position }, some))
  return new Map([...some, ...news])
}

export interface OrderReader {
  /** Where the newest order of each epoch stands. */
  newest(): Marks
  /** Scopes of orders that come after the marks; null when there are more than `limit`. */
  due(marks: Marks, limit: number): Scope[] | null
  /** The orders on one identity, which needs not be known here. */
  on(identity: string): PurgeOrder[]
}

type FoundRow = Omit<OrderRow, 'kind'>

interface CertificateLife {
  readonly issuer: Buffer | string
  readonly state: string
  readonly not_before: number
  readonly superseded_from: number | null
  readonly revoked_at: number | null
}

export function prepareOrderReader(db: Sqlite): OrderReader {
  const nextEpoch = db
    .prepare<[string], string | null>('SELECT MIN(epoch) FROM purges WHERE epoch > ?')
    .pluck()
  const newest = db.prepare<[string], number>('SELECT MAX(position) FROM purges WHERE epoch = ?').pluck()
  const after = db.prepare<[string, number, number], Scope>(
    'SELECT kind, id FROM purges WHERE epoch = ? AND position > ? LIMIT ?',
  )
  const columns = 'p.id, p.retained, p.epoch, p.position, p.at'
  const onScope = db.prepare<[string, string], FoundRow>(
    `SELECT ${columns} FROM purges p WHERE p.kind = ? AND p.id = ?`,
  )
  const onMember = db.prepare<[string], FoundRow>(
    `SELECT ${columns} FROM members m CROSS JOIN purges p ON p.kind = 'plan' AND p.id = m.hold WHERE m.device = ?`,
  )
  const onIssuers = db.prepare<[], FoundRow>(`SELECT ${columns} FROM purges p WHERE p.kind = 'issuer'`)
  const device = db.prepare<[string], { fleet: string; batch: string | null }>(
    'SELECT fleet, batch FROM devices WHERE id = ?',
  )
  const certificates = db.prepare<[string], CertificateLife>(
    'SELECT issuer, state, not_before, superseded_from, revoked_at FROM certificates WHERE device = ?',
  )
  const epochs = () => {
    const found: string[] = []
    for (let epoch = nextEpoch.get(''); epoch; epoch = nextEpoch.get(epoch)) found.push(epoch)
    return found
  }
  return {
    newest: () => new Map(epochs().map((epoch) => [epoch, newest.get(epoch) ?? -1])),
    due(marks, limit) {
      const scopes = epochs().flatMap((epoch) => after.all(epoch, marks.get(epoch) ?? -1, limit + 1))
      return scopes.length > limit ? null : scopes
    },
    on(identity) {
      const rows = [...onScope.all('device', identity), ...onMember.all(identity)]
      const { fleet, batch = null } = device.get(identity) ?? {}
      if (fleet !== undefined) rows.push(...onScope.all('fleet', fleet))
      if (batch !== null) rows.push(...onScope.all('batch', batch))
      const ofIssuers = onIssuers.all()
      const lives = ofIssuers.length === 0 ? [] : certificates.all(identity)
      rows.push(...ofIssuers.filter((row) => wasStopped(lives, row)))
      return rows.map(({ retained, epoch, position }) => ({ retained: retained === 1, epoch, position }))
    },
  }
}

/**
 * Was the device stopped by a hold on an issuer? Not when another one had given it a certificate by then, with which it
 * went on.
 */
function wasStopped(certificates: readonly CertificateLife[], order: { id: string; at: number }): boolean {
  const { id, at } = order
  const isOf = ({ issuer }: CertificateLife) =>
    (typeof issuer === 'string' ? issuer : issuer.toString('hex')) === id
  const wasLive = ({ state, not_before, superseded_from, revoked_at }: CertificateLife) =>
    not_before <= at &&
    (state !== 'revoked' || (revoked_at ?? 0) > at) &&
    (state !== 'superseded' || (superseded_from ?? 0) > at)
  return certificates.some(isOf) && !certificates.some((one) => wasLive(one) && !isOf(one))
}
