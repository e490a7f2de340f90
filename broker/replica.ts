import { MusterError } from '#shared/errors'
import type {
  CertificateRecord,
  Cursor,
  DeviceRecord,
  FeedMessage,
  FleetRecord,
  HoldRecord,
  IssuerRecord,
} from '#shared/feed'
import { openSqlite, type Sqlite } from '#shared/sqlite'
import { HoldIndex } from './hold-index.ts'
import { prepareReader, prepareWriter, readMemory, type WriteChange } from './replica-rows.ts'
import { BUSY_TIMEOUT_MS, MIGRATIONS } from './replica-schema.ts'
import { Staging } from './replica-staging.ts'
import { prepareSweep } from './replica-sweep.ts'
import { Spool } from './spool.ts'

/** Everything that admission needs to know about one certificate, read at one moment. */
export interface AdmissionRecord {
  readonly certificate: CertificateRecord
  readonly device: DeviceRecord
  readonly fleet: FleetRecord
  /** One of the active holds that cover the certificate; null when there is none. */
  readonly hold: HoldRecord | null
}

export type PositionedChange = Extract<FeedMessage, { type: 'change' }>

/** Pages that SQLite keeps in memory: with its default of 2 000 KiB a point read of a large fleet costs twice as much. */
const CACHE_KIB = 16_384

/**
 * Opens `broker.db`.
 * @throws MusterError directory_unusable when it is damaged; its message says how to start again
 */
export function openReplica(path: string): Replica {
  let db: Sqlite | undefined
  try {
    db = openSqlite(path, { busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: MIGRATIONS })
    db.pragma(`cache_size = -${CACHE_KIB}`)
    return new Replica(db)
  } catch (error) {
    db?.close()
    if (!isDamage(error)) throw error
    throw new MusterError(
      'directory_unusable',
      `Cannot use the replica "${path}": it is damaged. It is only a copy of the registry; fix: ` +
        `rm ${path} ${path}-wal ${path}-shm, and start again (reports that were not delivered are lost)`,
      { cause: error },
    )
  }
}

/** True when SQLite found the file itself to be wrong (`shared/sqlite.ts` keeps its error as the cause), or a policy in it is not JSON. */
function isDamage(error: unknown): boolean {
  if (error instanceof SyntaxError) return true
  const reported = error instanceof MusterError ? error.cause : error
  const code = reported instanceof Error && 'code' in reported ? String(reported.code) : ''
  return code.startsWith('SQLITE_CORRUPT') || code === 'SQLITE_NOTADB'
}

/** Those that rise from the position on; a change that is delivered again, late, would undo what followed it. */
function messagesAfter(position: number, messages: readonly PositionedChange[]): PositionedChange[] {
  let newest = position
  return messages.filter((message) => {
    const isNew = message.position > newest
    if (isNew) newest = message.position
    return isNew
  })
}

interface State {
  generation: number
  newest: number
  epoch: string | null
  position: number | null
  heardAt: number | null
}

/**
 * The part of the registry that a broker needs, on disk and readable synchronously. Small parts (issuers, fleets,
 * active holds) are in memory as well. What it does not know is not admitted.
 *
 * While a snapshot is being written, the state before it goes on serving; it is complete, only older, as it was
 * during the cut that made the snapshot necessary. `endSnapshot` changes over at once.
 */
export class Replica {
  /** Reports that have not been taken by the registry yet; in the same file, so that both survive together. */
  readonly spool: Spool
  readonly #db: Sqlite
  readonly #read: ReturnType<typeof prepareReader>
  readonly #write: WriteChange
  readonly #sweep: ReturnType<typeof prepareSweep>
  readonly #saveState: (state: State) => void
  #state: State
  #staging: Staging | null = null
  #issuers = new Map<string, IssuerRecord>()
  #fleets = new Map<string, FleetRecord>()
  #holds = new HoldIndex()

  constructor(db: Sqlite) {
    this.#db = db
    this.spool = new Spool(db)
    this.#read = prepareReader(db)
    this.#write = prepareWriter(db)
    this.#sweep = prepareSweep(db)
    const save = db.prepare(
      'UPDATE replica SET generation = ?, newest = ?, epoch = ?, position = ?, heard_at = ?',
    )
    this.#saveState = (s) => void save.run(s.generation, s.newest, s.epoch, s.position, s.heardAt)
    this.#state = db
      .prepare<[], State>('SELECT generation, newest, epoch, position, heard_at AS heardAt FROM replica')
      .get() as State // the row is made with the schema and never deleted
    this.#remember(this.#state.generation)
  }

  /** Null when the registry has no such certificate, or its device, fleet or trusted issuer is not known here. */
  record(fingerprint: string): AdmissionRecord | null {
    const row = this.#read.credential(this.#state.generation, fingerprint)
    if (row === null || !this.#issuers.get(row.certificate.issuer)?.trusted) return null
    const fleet = this.#fleets.get(row.device.fleet)
    if (fleet === undefined) return null
    return { ...row, fleet, hold: this.#holdOn(row.device, row.certificate) }
  }

  #holdOn(device: DeviceRecord, certificate: CertificateRecord): HoldRecord | null {
    const hold = this.#holds.covering(device, certificate)
    if (hold !== null || !this.#holds.hasPlans()) return hold
    for (const id of this.#read.holdsWithMember(this.#state.generation, device.id)) {
      const plan = this.#holds.get(id)
      if (plan?.scope.kind === 'plan') return plan
    }
    return null
  }

  fleet(id: string): FleetRecord | null {
    return this.#fleets.get(id) ?? null
  }

  fleets(): FleetRecord[] {
    return [...this.#fleets.values()]
  }

  issuers(): IssuerRecord[] {
    return [...this.#issuers.values()]
  }

  activeHolds(): HoldRecord[] {
    return this.#holds.all()
  }

  /** True while the hold stops anybody. */
  isActive(hold: string): boolean {
    return this.#holds.get(hold) !== null
  }

  isMember(hold: string, device: string): boolean {
    return this.#read.isMember(this.#state.generation, hold, device)
  }

  /** The members of a hold on a plan, or null when there are more than `limit`: then ask {@link isMember} instead. */
  members(hold: string, limit: number): string[] | null {
    const { generation } = this.#state
    return this.#read.countMembers(generation, hold, limit + 1) > limit
      ? null
      : this.#read.members(generation, hold)
  }

  /** True while a certificate of the device is issued or active; its dates are not looked at. */
  hasLiveCertificate(device: string): boolean {
    return this.#read.hasLiveCertificate(this.#state.generation, device)
  }

  /** What devices are to trust; null before the first rollover. */
  readonly trust = () => this.#read.trust(this.#state.generation)

  /** What has been applied; null before the first snapshot is complete. */
  cursor(): Cursor | null {
    const { epoch, position } = this.#state
    return epoch === null || position === null ? null : { epoch, position }
  }

  /** When the registry was last heard, ms by this machine's clock; survives a restart, up to some seconds. */
  lastHeardAt(): number | null {
    return this.#state.heardAt
  }

  /** Notes that the registry was heard; written with the next change, or now when `persist` says so. */
  heard(now: number, persist: boolean): void {
    this.#state.heardAt = now
    if (persist) this.#saveState(this.#state)
  }

  /**
   * Applies changes that follow the cursor, and moves it, in one transaction; returns those that were new. When the
   * disk refuses, holds among them are in force all the same (from memory; one on a plan as far as its members are
   * stored), the cursor stays, and the error goes to the caller, who asks the registry for the same changes again.
   * @throws what SQLite throws; nothing was stored then
   */
  apply(messages: readonly PositionedChange[]): readonly PositionedChange[] {
    const fresh = messagesAfter(this.#state.position ?? -1, messages)
    const last = fresh.at(-1)
    if (last === undefined) return fresh
    const next = { ...this.#state, position: last.position }
    try {
      this.#transact(() => {
        for (const { change } of fresh) this.#write(next.generation, change)
        this.#saveState(next)
      })
    } catch (error) {
      this.#stopHeld(fresh)
      throw error
    }
    this.#state = next
    for (const { change } of fresh) {
      if (change.kind === 'issuer') this.#issuers.set(change.issuer.id, change.issuer)
      if (change.kind === 'fleet') this.#fleets.set(change.fleet.id, change.fleet)
      if (change.kind === 'hold') this.#holds.put(change.hold)
    }
    return fresh
  }

  #stopHeld(fresh: readonly PositionedChange[]): void {
    for (const { change } of fresh) {
      if (change.kind === 'hold' && change.hold.state === 'active') this.#holds.put(change.hold)
    }
  }

  /** A new, empty state beside the serving one; one that was begun before and not ended is left to {@link sweep}. */
  beginSnapshot(): void {
    this.#state = { ...this.#state, newest: this.#state.newest + 1 }
    this.#saveState(this.#state)
    this.#staging = new Staging(this.#db, { generation: this.#state.newest, write: this.#write })
  }

  /** Adds a part of the snapshot. */
  stage(messages: readonly PositionedChange[]): void {
    if (this.#staging === null) throw new TypeError('No snapshot has been begun')
    this.#staging.add(messages.map(({ change }) => change))
  }

  /** The staged state takes over, with its cursor, in one transaction. */
  endSnapshot(cursor: Cursor): void {
    if (this.#staging === null) throw new TypeError('No snapshot has been begun')
    this.#staging.flush()
    const { generation } = this.#staging
    const next = { ...this.#state, generation, ...cursor }
    this.#saveState(next)
    this.#state = next
    this.#staging = null
    this.#remember(generation)
  }

  /** Gives up a snapshot whose stream was cut. */
  abandonSnapshot(): void {
    this.#staging = null
  }

  /** Deletes some rows that nothing reads any more; true when there may be others. */
  sweep(): boolean {
    return this.#sweep(this.#state.generation, this.#staging?.generation ?? null)
  }

  /** Notes that the receipt line of the hold is in the spool. */
  markReported(hold: string): void {
    this.#db
      .prepare('UPDATE holds SET reported = 1 WHERE generation = ? AND id = ?')
      .run(this.#state.generation, hold)
  }

  /** Active holds whose receipt line is not in the spool: this broker was stopped in between, or has a new state. */
  unreportedHolds(): HoldRecord[] {
    const ids = this.#db
      .prepare<[number], string>(
        "SELECT id FROM holds WHERE generation = ? AND state = 'active' AND reported = 0",
      )
      .pluck()
      .all(this.#state.generation)
    return ids.map((id) => this.#holds.get(id)).filter((hold) => hold !== null)
  }

  close(): void {
    this.#db.close()
  }

  #remember(generation: number): void {
    const { issuers, fleets, holds } = readMemory(this.#db, generation)
    this.#issuers = new Map(issuers.map((issuer) => [issuer.id, issuer]))
    this.#fleets = new Map(fleets.map((fleet) => [fleet.id, fleet]))
    this.#holds = new HoldIndex()
    for (const hold of holds) this.#holds.put(hold)
  }

  #transact(work: () => void): void {
    this.#db.transaction(work).immediate()
  }
}
