import { isMusterError, MusterError } from '#shared/errors'
import { type Cryptoki, CryptokiError, FLAG, type Handle, RV, type TokenInfo } from './cryptoki.ts'
import type { Lane } from './lane.ts'
import type { KeyUri } from './uri.ts'

/** How a token is named in URIs. */
export type TokenName = Pick<KeyUri, 'modulePath' | 'token' | 'serial'>

export interface TokenDeps {
  readonly module: Cryptoki
  /** Read at each login. @throws MusterError passphrase_wrong, key_file_insecure */
  pin(): string
  now(): number
  /** Of the module: all its tokens share one. */
  readonly lane: Lane
}

/** Pause after a login that failed for another reason than the PIN, ms. */
const PAUSE_MS = 1_000

/** After these the token is not asked again: each further attempt would bring it nearer to locking itself. */
const PIN_REFUSED: readonly number[] = [
  RV.CKR_PIN_INCORRECT,
  RV.CKR_PIN_INVALID,
  RV.CKR_PIN_LEN_RANGE,
  RV.CKR_PIN_EXPIRED,
  RV.CKR_PIN_LOCKED,
  RV.CKR_USER_PIN_NOT_INITIALIZED,
]
/** What is to be found out anew: with these a second attempt follows at once, after a new login. */
const SESSION_LOST: readonly number[] = [
  RV.CKR_SESSION_CLOSED,
  RV.CKR_SESSION_HANDLE_INVALID,
  RV.CKR_KEY_HANDLE_INVALID,
  RV.CKR_OBJECT_HANDLE_INVALID,
  RV.CKR_OPERATION_ACTIVE,
  RV.CKR_USER_NOT_LOGGED_IN,
  RV.CKR_CRYPTOKI_NOT_INITIALIZED,
  RV.CKR_DEVICE_ERROR,
  RV.CKR_DEVICE_REMOVED,
  RV.CKR_TOKEN_NOT_PRESENT,
]

/** A session in which the user has logged in, and the keys that were looked up in it. */
export interface Session {
  readonly module: Cryptoki
  readonly handle: Handle
  readonly keys: Map<string, Handle>
}

/**
 * One session with one token, for one request after the other. A session that was lost is replaced by the next
 * request; while the token is away requests are refused, and it is asked again once a second.
 */
export class Token {
  readonly #name: TokenName
  readonly #deps: TokenDeps
  #session: Session | null = null
  #pinRefused: MusterError | null = null
  #askAgainAt = 0

  constructor(name: TokenName, deps: TokenDeps) {
    this.#name = name
    this.#deps = deps
  }

  /**
   * Does some work in the session when it is its turn.
   * @throws MusterError unavailable (the token is away, slow, or too many wait: ask again), passphrase_wrong (the
   *   token refuses the PIN: do not), and what the work throws beside CryptokiError
   */
  use<T>(work: (session: Session) => Promise<T>): Promise<T> {
    return this.#deps.lane.run(() => this.#attempt(work))
  }

  /** Waits for the work that is under way, and lets the session go. */
  async close(): Promise<void> {
    this.#pinRefused ??= this.#unavailable('it is closed')
    await this.#deps.lane.idle()
    await this.#drop()
  }

  async #attempt<T>(work: (session: Session) => Promise<T>): Promise<T> {
    try {
      return await this.#once(work)
    } catch (error) {
      if (!(error instanceof CryptokiError)) throw error
      await this.#drop()
      if (!SESSION_LOST.includes(error.rv)) throw this.#unavailable(error.message, error)
    }
    return this.#once(work).catch(async (error) => {
      if (!(error instanceof CryptokiError)) throw error
      await this.#drop()
      throw this.#unavailable(error.message, error)
    })
  }

  async #once<T>(work: (session: Session) => Promise<T>): Promise<T> {
    this.#session ??= await this.#open()
    return work(this.#session)
  }

  async #open(): Promise<Session> {
    if (this.#pinRefused) throw this.#pinRefused
    if (this.#deps.now() < this.#askAgainAt) throw this.#unavailable('it is away')
    try {
      return await this.#login()
    } catch (error) {
      if (isMusterError(error) && error.code !== 'unavailable') throw error
      this.#askAgainAt = this.#deps.now() + PAUSE_MS
      // the module may hold on to what it knew of its tokens: softhsm2 never looks again
      await this.#deps.module.finalize().catch(() => {})
      throw error instanceof CryptokiError ? this.#unavailable(error.message, error) : error
    }
  }

  async #login(): Promise<Session> {
    const { module } = this.#deps
    await module.initialize()
    const slot = await this.#slot()
    const handle = await module.openSession(slot)
    try {
      await module.login(handle, this.#deps.pin())
    } catch (error) {
      await module.closeSession(handle).catch(() => {})
      if (error instanceof CryptokiError && PIN_REFUSED.includes(error.rv)) throw this.#refuse(error.message)
      throw error
    }
    return { module, handle, keys: new Map() }
  }

  /** The slot that the token is in now. */
  async #slot(): Promise<Handle> {
    const { module } = this.#deps
    const found: { slot: Handle; flags: number }[] = []
    for (const slot of await module.slots()) {
      const { label, serial, flags } = await module.tokenInfo(slot).catch(unreadable)
      const { token, serial: wanted } = this.#name
      if ((token ?? label) === label && (wanted ?? serial) === serial) found.push({ slot, flags })
    }
    const [one, another] = found
    if (one === undefined) throw this.#unavailable('it is away')
    if (another) throw this.#unavailable('more than one is called so; name its serial, too')
    if (one.flags & FLAG.userPinLocked) throw this.#refuse('its PIN is locked')
    if (one.flags & FLAG.userPinFinalTry) {
      throw this.#refuse('one more wrong PIN locks it; log in with another tool first')
    }
    return one.slot
  }

  async #drop(): Promise<void> {
    const session = this.#session
    this.#session = null
    await session?.module.closeSession(session.handle).catch(() => {}) // most often it is gone
  }

  #refuse(why: string): MusterError {
    this.#pinRefused = new MusterError(
      'passphrase_wrong',
      `Cannot log in to ${this.#shown()}: ${why}; the PIN is not tried again before the next start`,
    )
    return this.#pinRefused
  }

  #unavailable(why: string, cause?: unknown): MusterError {
    return new MusterError('unavailable', `Cannot use ${this.#shown()}: ${why}`, { cause })
  }

  #shown(): string {
    return `the token "${this.#name.token ?? this.#name.serial}"`
  }
}

/** What is in another slot, and cannot be read, is not the token that is looked for. */
function unreadable(error: unknown): TokenInfo {
  if (error instanceof CryptokiError) return { label: '', serial: '', flags: 0 }
  throw error
}
