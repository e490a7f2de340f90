import type {
  CertificateRecord,
  Change,
  Cursor,
  DeviceRecord,
  FleetRecord,
  HoldRecord,
  IssuerRecord,
} from '#shared/feed'
import { openSqlite, type Sqlite } from '#shared/sqlite'
import { HoldIndex } from './hold-index.ts'
import { type OrderReader, OWN_EPOCH, prepareOrderReader } from './purge-rows.ts'
import type { PositionedChange } from './replica.ts'
import {
  type CredentialRow,
  prepareReader,
  prepareWriter,
  readMemory,
  type StateReader,
  type TrustRow,
  upserting,
  type WriteChange,
} from './replica-rows.ts'
import { BUSY_TIMEOUT_MS } from './replica-schema.ts'
import { prepareSweep } from './replica-sweep.ts'
import { STATE_INDEXES, STATE_MIGRATIONS } from './state-schema.ts'
import { UnstoredEnds } from './unstored-ends.ts'

/** Pages that SQLite keeps in memory: with its default of 2 000 KiB a point read of a large fleet costs twice as much. */
const CACHE_KIB = 16_384

/** Most certificates whose rows are kept after they were read: one connection asks for its own six times. */
const MOST_READ = 1_024

/** Most devices that are kept: those with a session, whose queue a message may reach at any time. */
const MOST_DEVICES = 20_000

/** What a state was made of, and when it was heard of last. */
export interface StateMark {
  readonly epoch: string | null
  readonly position: number | null
  /** Ms since 1970 by this machine's clock. */
  readonly heardAt: number | null
}

/** Opens a state file; one that is not there is made, and knows nothing. @throws as `openSqlite` */
export function openState(path: string): ReplicaState {
  const db = openSqlite(path, { busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: STATE_MIGRATIONS })
  try {
    db.pragma(`cache_size = -${CACHE_KIB}`)
    for (const index of STATE_INDEXES) db.exec(index)
    return new ReplicaState(db)
  } catch (error) {
    db.close()
    throw error
  }
}

/** Notes in a state file what it was made of. */
export function prepareMark(db: Sqlite): (mark: StateMark) => void {
  const save = db.prepare('UPDATE state SET epoch = ?, position = ?, heard_at = ?')
  return ({ epoch, position, heardAt }) => void save.run(epoch, position, heardAt)
}

/** One state of the registry in its file, with the small parts in memory as well. */
export class ReplicaState {
  readonly read: StateReader
  readonly issuers = new Map<string, IssuerRecord>()
  readonly fleets = new Map<string, FleetRecord>()
  readonly holds = new HoldIndex()
  readonly orders: OrderReader
  readonly sweep: () => boolean
  mark: StateMark
  readonly #db: Sqlite
  readonly #write: WriteChange
  readonly #saveMark: (mark: StateMark) => void
  /** Rows that were read since the last change; every change forgets all of them. */
  readonly #known = new Map<string, CredentialRow>()
  /** Members of holds that could not be stored, by hold. */
  readonly #unstored = new Map<string, Set<string>>()
  readonly #ends = new UnstoredEnds({
    credential: (fingerprint) => this.#storedCredential(fingerprint),
    device: (id) => this.#storedDevice(id),
  })
  /** Devices that were asked for since they changed last. */
  readonly #devices = new Map<string, DeviceRecord>()
  #trust: TrustRow | null | undefined

  constructor(db: Sqlite) {
    this.#db = db
    this.read = prepareReader(db)
    this.orders = prepareOrderReader(db)
    this.#write = prepareWriter(db, upserting(db))
    this.#saveMark = prepareMark(db)
    this.sweep = prepareSweep(db)
    this.mark = db
      .prepare<[], StateMark>('SELECT epoch, position, heard_at AS heardAt FROM state')
      .get() as StateMark // the row is made with the schema and never deleted
    const { issuers, fleets, holds } = readMemory(db)
    for (const issuer of issuers) this.issuers.set(issuer.id, issuer)
    for (const fleet of fleets) this.fleets.set(fleet.id, fleet)
    for (const hold of holds) this.holds.put(hold)
  }

  cursor(): Cursor | null {
    const { epoch, position } = this.mark
    return epoch === null || position === null ? null : { epoch, position }
  }

  /** Null when the certificate or its device is not known here; that is asked again every time. */
  credential(fingerprint: string): CredentialRow | null {
    return this.#ends.credential(this.#storedCredential(fingerprint))
  }

  #storedCredential(fingerprint: string): CredentialRow | null {
    const known = this.#known.get(fingerprint)
    if (known !== undefined) return known
    const row = this.read.credential(fingerprint)
    if (row === null) return null
    if (this.#known.size >= MOST_READ) this.#known.clear()
    this.#known.set(fingerprint, row)
    return row
  }

  /** The same object until the device changes; null when it is not known. */
  device(id: string): DeviceRecord | null {
    return this.#ends.device(this.#storedDevice(id))
  }

  #storedDevice(id: string): DeviceRecord | null {
    const known = this.#devices.get(id)
    if (known !== undefined) return known
    const device = this.read.device(id)
    if (device === null) return null
    if (this.#devices.size >= MOST_DEVICES) this.#devices.clear()
    this.#devices.set(id, device)
    return device
  }

  trust(): TrustRow | null {
    if (this.#trust === undefined) this.#trust = this.read.trust()
    return this.#trust
  }

  holdOn(device: DeviceRecord, certificate: CertificateRecord): HoldRecord | null {
    const hold = this.holds.covering(device, certificate)
    if (hold !== null || !this.holds.hasPlans()) return hold
    const unstored = [...this.#unstored.keys()].filter((id) => this.#unstored.get(id)?.has(device.id))
    for (const id of [...unstored, ...this.read.holdsWithMember(device.id)]) {
      const plan = this.holds.get(id)
      if (plan?.scope.kind === 'plan') return plan
    }
    return null
  }

  /** Stores changes and the position of the last, both or neither. @throws what SQLite throws */
  store(changes: readonly PositionedChange[], position: number): void {
    const next = { ...this.mark, position }
    try {
      this.#db
        .transaction(() => {
          const epoch = this.mark.epoch ?? OWN_EPOCH
          for (const { change, position, at } of changes) this.#write(change, { epoch, position, at })
          this.#saveMark(next)
        })
        .immediate()
    } finally {
      this.#known.clear()
      for (const { change } of changes) this.#forget(change)
      this.#trust = undefined
    }
    this.mark = next
    for (const { change } of changes) {
      this.#ends.stored(change)
      if (change.kind === 'issuer') this.issuers.set(change.issuer.id, change.issuer)
      if (change.kind === 'fleet') this.fleets.set(change.fleet.id, change.fleet)
      if (change.kind === 'hold') this.holds.put(change.hold)
      if (change.kind === 'members') this.#membersStored(change.hold, change.devices)
    }
  }

  /** True for what {@link stop} may have to know. */
  mayStop(change: Change): boolean {
    if (change.kind === 'hold' || change.kind === 'members') return true
    return change.kind === 'issuer' ? !change.issuer.trusted : this.#ends.isEnd(change)
  }

  /** Puts a change that stops somebody in force from memory alone, and before a hold its members; false when that is nothing new. */
  stop(change: Change): boolean {
    if (change.kind === 'members') {
      const members = this.#unstored.get(change.hold) ?? new Set()
      for (const device of change.devices) members.add(device)
      this.#unstored.set(change.hold, members)
    }
    if (change.kind === 'issuer' && !change.issuer.trusted) {
      const wasTrusted = this.issuers.get(change.issuer.id)?.trusted === true
      this.issuers.set(change.issuer.id, change.issuer)
      return wasTrusted
    }
    if (change.kind !== 'hold') return this.#ends.take(change)
    if (change.hold.state !== 'active') return false
    const isNew = this.holds.get(change.hold.id) === null
    this.holds.put(change.hold)
    return isNew
  }

  #membersStored(hold: string, devices: readonly string[]): void {
    const members = this.#unstored.get(hold)
    for (const device of devices) members?.delete(device)
    if (members?.size === 0) this.#unstored.delete(hold)
  }

  #forget(change: Change): void {
    if (change.kind === 'device') this.#devices.delete(change.device.id)
    if (change.kind === 'forgotten') this.#devices.delete(change.device)
  }

  heard(now: number, persist: boolean): void {
    this.mark = { ...this.mark, heardAt: now }
    if (persist) this.#saveMark(this.mark)
  }

  markReported(hold: string): void {
    this.#db.prepare('UPDATE holds SET reported = 1 WHERE id = ?').run(hold)
  }

  unreportedHolds(): HoldRecord[] {
    const ids = this.#db
      .prepare<[], string>("SELECT id FROM holds WHERE state = 'active' AND reported = 0")
      .pluck()
      .all()
    return ids.map((id) => this.holds.get(id)).filter((hold) => hold !== null)
  }

  close(): void {
    this.#db.close()
  }
}
