import { MusterError } from '#shared/errors'
import type {
  CertificateRecord,
  Change,
  Cursor,
  DeviceRecord,
  FeedMessage,
  FleetRecord,
  HoldRecord,
  IssuerRecord,
} from '#shared/feed'
import { openSqlite, type Sqlite } from '#shared/sqlite'
import { messagesAfter } from './feed-lines.ts'
import { type Generations, prepareGenerations, readGenerations } from './generations.ts'
import { type Clocks, LastHeard } from './last-heard.ts'
import type { OrderReader } from './purge-rows.ts'
import { BUSY_TIMEOUT_MS, MIGRATIONS } from './replica-schema.ts'
import { Staging } from './replica-staging.ts'
import { openState, type ReplicaState } from './replica-state.ts'
import { Spool } from './spool.ts'
import { type StateFiles, stateFiles } from './state-files.ts'

/** Everything that admission needs to know about one certificate, read at one moment. */
export interface AdmissionRecord {
  readonly certificate: CertificateRecord
  readonly device: DeviceRecord
  readonly fleet: FleetRecord
  /** One of the active holds that cover the certificate; null when there is none. */
  readonly hold: HoldRecord | null
}

export type PositionedChange = Extract<FeedMessage, { type: 'change' }>

const OWN_CLOCKS: Clocks = { now: Date.now, monotonic: () => performance.now() }

/**
 * Opens `broker.db` and the state file that it names; one that is not there is an empty state, in which a broker asks
 * for a snapshot.
 * @throws MusterError directory_unusable when one of them is damaged; its message says how to start again
 */
export function openReplica(path: string, clocks: Clocks = OWN_CLOCKS): Replica {
  const files = stateFiles(path)
  let db: Sqlite | undefined
  let opening = path
  try {
    db = openSqlite(path, { busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: MIGRATIONS })
    const generations = readGenerations(db)
    files.removeOthers(generations.generation)
    opening = files.path(generations.generation)
    return new Replica(db, { files, generations, state: openState(opening), clocks })
  } catch (error) {
    db?.close()
    if (!isDamage(error)) throw error
    const loses = opening === path ? ' (reports that were not delivered are lost)' : ''
    throw new MusterError(
      'directory_unusable',
      `Cannot use the replica "${opening}": it is damaged. It is only a copy of the registry; fix: ` +
        `rm ${opening} ${opening}-wal ${opening}-shm, and start again${loses}`,
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

interface ReplicaParts {
  readonly files: StateFiles
  readonly generations: Generations
  readonly state: ReplicaState
  readonly clocks: Clocks
}

/**
 * The part of the registry that a broker needs, on disk and readable synchronously. Small parts (issuers, fleets,
 * active holds) are in memory as well. What it does not know is not admitted.
 *
 * While a snapshot is being written, the state before it goes on serving; it is complete, only older, as it was
 * during the cut that made the snapshot necessary. `endSnapshot` changes over at once.
 */
export class Replica {
  /** Reports that have not been taken by the registry yet; a new state leaves them alone. */
  readonly spool: Spool
  readonly #db: Sqlite
  readonly #files: StateFiles
  readonly #save: (generations: Generations) => void
  readonly #lastHeard: LastHeard
  #generations: Generations
  #state: ReplicaState
  #staging: Staging | null = null
  #stagedStops: PositionedChange[] = []
  /** The state that a finished snapshot has become, until it serves. */
  #ready: ReplicaState | null = null
  /** States that nothing reads any more, and whose files are still there. */
  #discarded: { readonly generation: number; close(): void }[] = []

  constructor(db: Sqlite, { files, generations, state, clocks }: ReplicaParts) {
    this.#db = db
    this.spool = new Spool(db)
    this.#files = files
    this.#generations = generations
    this.#state = state
    this.#lastHeard = new LastHeard(state.mark.heardAt, clocks)
    this.#save = prepareGenerations(db)
  }

  /** Null when the registry has no such certificate, or its device, fleet or trusted issuer is not known here. */
  record(fingerprint: string): AdmissionRecord | null {
    const row = this.#state.credential(fingerprint)
    if (row === null) return null
    const { certificate, device } = row
    const fleet = this.fleet(device.fleet)
    if (fleet === null || !this.#state.issuers.get(certificate.issuer)?.trusted) return null
    return { certificate, device, fleet, hold: this.#state.holdOn(device, certificate) }
  }

  /** The same object until the device changes. */
  readonly device = (id: string): DeviceRecord | null => this.#state.device(id)

  readonly fleet = (id: string): FleetRecord | null => this.#state.fleets.get(id) ?? null

  fleets(): FleetRecord[] {
    return [...this.#state.fleets.values()]
  }

  issuers(): IssuerRecord[] {
    return [...this.#state.issuers.values()]
  }

  activeHolds(): HoldRecord[] {
    return this.#state.holds.all()
  }

  /** True while the hold stops anybody. */
  isActive(hold: string): boolean {
    return this.#state.holds.get(hold) !== null
  }

  readonly isMember = (hold: string, device: string): boolean => this.#state.read.isMember(hold, device)

  /** What was ordered to be forgotten, by holds in force and by those that have ended. */
  get orders(): OrderReader {
    return this.#state.orders
  }

  /** The members of a hold on a plan, or null when there are more than `limit`: then ask {@link isMember} instead. */
  members(hold: string, limit: number): string[] | null {
    const { read } = this.#state
    return read.countMembers(hold, limit + 1) > limit ? null : read.members(hold)
  }

  /** True while a certificate of the device is issued or active; its dates are not looked at. */
  hasLiveCertificate(device: string): boolean {
    return this.#state.read.hasLiveCertificate(device)
  }

  /** What devices are to trust; null before the first rollover. */
  readonly trust = () => this.#state.trust()

  /** What has been applied; null before the first snapshot is complete. */
  cursor(): Cursor | null {
    return this.#state.cursor()
  }

  /** When the registry was last heard, ms by this machine's clock; survives a restart, up to some seconds. */
  lastHeardAt(): number | null {
    return this.#lastHeard.at
  }

  /** How long the registry has been silent, ms; for ever when it was never heard. */
  silentMs(now: number): number {
    return this.#lastHeard.silentMs(now)
  }

  /** Notes that the registry was heard; written with the next change, or now when `persist` says so. */
  heard(now: number, persist: boolean): void {
    this.#lastHeard.heard(now)
    this.#state.heard(now, persist)
  }

  /**
   * Applies changes that follow the cursor, and moves it, in one transaction; returns those that were new.
   * @throws what SQLite throws; nothing was stored then, and the cursor stays: {@link stopUnstored} is what is left to do
   */
  apply(messages: readonly PositionedChange[]): readonly PositionedChange[] {
    const fresh = messagesAfter(this.#state.mark.position ?? -1, messages)
    const last = fresh.at(-1)
    if (last !== undefined) this.#state.store(fresh, last.position)
    return fresh
  }

  /**
   * Puts those among changes that cannot be stored in force all the same that stop somebody (holds, revocations, retired
   * and forgotten devices, issuers that are not trusted any more), from memory: until they are stored, or this process
   * ends. Returns those that are new. None is lifted: what followed it is not stored, either.
   */
  stopUnstored(messages: readonly PositionedChange[]): Change[] {
    return messages.map(({ change }) => change).filter((change) => this.#state.stop(change))
  }

  /** A new, empty state beside the serving one; one that was begun before and not ended is given up. */
  beginSnapshot(): void {
    this.abandonSnapshot()
    const generations = { ...this.#generations, newest: this.#generations.newest + 1 }
    this.#save(generations)
    this.#generations = generations
    const { newest: generation } = generations
    this.#files.remove(generation)
    this.#staging = new Staging({ path: this.#files.path(generation), generation })
  }

  /** Of the snapshot so far, for {@link stopUnstored}. */
  get stagedStops(): readonly PositionedChange[] {
    return this.#stagedStops
  }

  /** Adds a part of the snapshot. */
  stage(messages: readonly PositionedChange[]): void {
    if (this.#staging === null) throw new TypeError('No snapshot has been begun')
    this.#stagedStops.push(...messages.filter(({ change }) => this.#state.mayStop(change)))
    this.#staging.add(messages)
  }

  /**
   * Resolves when the staged state is on the disk and can take over: at once when it is small; a large one is indexed
   * in a thread of its own meanwhile.
   * @throws what SQLite throws; an AbortError when the signal says so
   */
  async finishSnapshot(cursor: Cursor, signal?: AbortSignal): Promise<void> {
    const staging = this.#staging
    if (staging === null) throw new TypeError('No snapshot has been begun')
    await staging.finish({ ...cursor, heardAt: this.lastHeardAt() }, signal)
    this.#ready = openState(this.#files.path(staging.generation))
  }

  /** The finished state takes over, with its cursor, by one update. */
  endSnapshot(): void {
    const [staging, state, before] = [this.#staging, this.#ready, this.#state]
    if (staging === null || state === null) throw new TypeError('No snapshot has been finished')
    const next = { ...this.#generations, generation: staging.generation }
    this.#save(next)
    this.#discarded.push({ generation: this.#generations.generation, close: () => before.close() })
    this.#generations = next
    this.#state = state
    this.#staging = null
    this.#stagedStops = []
    this.#ready = null
  }

  /** Gives up a snapshot whose stream was cut. */
  abandonSnapshot(): void {
    if (this.#staging === null) return
    this.#ready?.close()
    this.#staging.close()
    this.#discarded.push({ generation: this.#staging.generation, close: () => {} })
    this.#ready = null
    this.#staging = null
    this.#stagedStops = []
  }

  /** Deletes some rows or a file that nothing reads any more; true when there may be others. */
  sweep(): boolean {
    const discarded = this.#discarded.pop()
    if (discarded === undefined) return this.#state.sweep()
    discarded.close()
    this.#files.remove(discarded.generation)
    return true
  }

  /** Notes that the receipt line of the hold is in the spool. */
  markReported(hold: string): void {
    this.#state.markReported(hold)
  }

  /** Active holds whose receipt line is not in the spool: this broker was stopped in between, or has a new state. */
  unreportedHolds(): HoldRecord[] {
    return this.#state.unreportedHolds()
  }

  close(): void {
    this.abandonSnapshot()
    while (this.#discarded.length > 0) this.sweep()
    this.#state.close()
    this.#db.close()
  }
}
