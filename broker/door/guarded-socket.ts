import { Duplex } from 'node:stream'
import type { Connection } from '../sessions.ts'
import { type PacketLimits, PacketWalk } from './packet-walk.ts'

export interface GuardLimits extends PacketLimits {
  /** Octets that may wait for a slow reader. */
  readonly writeBufferBytes: number
}

export interface GuardOptions {
  readonly limits: GuardLimits
  /** The client broke a rule; the socket is destroyed after this call. */
  onViolation(violation: string): void
  /** The client reads too slowly; the socket is destroyed after this call. */
  onSlow(waitingBytes: number): void
}

/** What the guard of one socket knows; `connection` is set once the client has been let in. */
export interface Guard {
  readonly walk: PacketWalk
  readonly options: GuardOptions
  /** Prototype of the stream before it was guarded. */
  readonly base: Duplex
  connection: Connection | null
  isCorked: boolean
  /** Memory that is kept alive by what waits for the reader: whole pieces as they arrived, however little of each waits. */
  keptBytes: number
  /** Its pieces, and how much had been written when each was counted. */
  readonly keptPieces: { readonly end: number; readonly bytes: number }[]
  /** Octets so far. */
  written: number
  /** The piece that was counted last, until the end of the turn. */
  keptLast: ArrayBufferLike | null
  /** Set while nothing is read, so that the client's own buffers fill and it has to wait. */
  holding: NodeJS.Timeout | null
  /** It has been held at least once. */
  hasHeld: boolean
  /** Said goodbye to: whoever destroys it now does not mean it, but for a decision against the client. */
  isLeaving: boolean
  /** Its descriptor is closed, and what is left of it waits for {@link bury}. */
  isCut: boolean
}

const GUARD = Symbol('guard')
/** Most octets that are handed over at once: a packet may take some ten microseconds, and be as short as two octets. */
const PIECE = 16_384
/** `setTimeout` fires at once when it is told to wait longer, ms. */
const LONGEST_MS = 2_147_483_647

/**
 * A stream of octets that judges packets by their headers as they arrive, writes once in a turn of the event loop, and
 * never makes a writer wait: a reader that is too slow loses its socket, not everybody else their time. It is put
 * on a socket that exists already; a stream in between would cost a tenth of the throughput. Its methods are laid over
 * those of whatever the stream is, TLS or WebSocket, so that nobody comes in without them.
 */
class Guarded extends Duplex {
  declare [GUARD]: Guard

  override push(chunk: unknown, encoding?: BufferEncoding): boolean {
    const { walk, options, base, isLeaving } = this[GUARD]
    const violation = chunk instanceof Uint8Array && !isLeaving ? walk.take(chunk) : null
    if (violation === null) return base.push.call(this, chunk, encoding)
    options.onViolation(violation)
    this.destroy()
    return false
  }

  /** A piece at most, and nothing while reading is held; what arrives stays in buffers that have an end. */
  override read(size?: number): unknown {
    const { holding, base } = this[GUARD]
    if (holding !== null) return null
    const isMore = (size ?? null) === null && this.readableLength > PIECE
    return base.read.call(this, isMore ? PIECE : size)
  }

  /** Always true. After the decision against the client nothing more is written to it. */
  override write(...written: unknown[]): boolean {
    const guard = this[GUARD]
    const { connection, options, isLeaving, base } = guard
    if (isLeaving || (connection !== null && connection.refused !== null)) return true
    if (written[0] instanceof Uint8Array) written[0] = kept(guard, written[0])
    base.write.call(this, ...(written as Parameters<Duplex['write']>)) // the overloads of Writable.write, passed on as they came
    if (this.writableLength > options.limits.writeBufferBytes && !this.destroyed) {
      options.onSlow(this.writableLength)
      this.destroy()
    }
    return true
  }

  override cork(): void {
    const guard = this[GUARD]
    if (guard.isCorked) return
    guard.isCorked = true
    forget(guard, this.writableLength)
    guard.base.cork.call(this)
    setImmediate(() => {
      guard.isCorked = false
      guard.keptLast = null
      if (guard.connection !== null && guard.connection.refused !== null) this.destroy()
      else guard.base.uncork.call(this)
    })
  }

  /** Nothing: what was corked is written at the end of the turn. */
  override uncork(): void {}

  override destroy(error?: Error): this {
    const { connection, isLeaving, isCut, base } = this[GUARD]
    if (isCut) return this
    if (!isLeaving || (connection !== null && connection.refused !== null)) base.destroy.call(this, error)
    return this
  }
}

/**
 * A message leaves as the octets in which it came, which are a part of a larger piece. For a reader that is so slow that
 * such pieces add up to what may wait for it, it is copied.
 */
function kept(guard: Guard, octets: Uint8Array): Uint8Array {
  const { buffer } = octets
  guard.written += octets.length
  if (buffer === guard.keptLast || octets.length === buffer.byteLength) return octets
  if (guard.keptBytes > guard.options.limits.writeBufferBytes) {
    const own = Buffer.allocUnsafeSlow(octets.length)
    own.set(octets)
    return own
  }
  guard.keptBytes += buffer.byteLength
  guard.keptPieces.push({ end: guard.written, bytes: buffer.byteLength })
  guard.keptLast = buffer
  return octets
}

/** Takes out of the account what has been read. */
function forget(guard: Guard, waitingBytes: number): void {
  const { keptPieces } = guard
  let over = 0
  for (; over < keptPieces.length; over++) {
    const { end, bytes } = keptPieces[over] ?? { end: 0, bytes: 0 } // within its length
    if (end > guard.written - waitingBytes) break
    guard.keptBytes -= bytes
  }
  if (over > 0) keptPieces.splice(0, over)
}

const GUARDED = new WeakMap<object, object>()

/** The methods of {@link Guarded} on top of a prototype; the same one for all streams of a kind. */
function guardedFrom(base: Duplex): object {
  const known = GUARDED.get(base)
  if (known !== undefined) return known
  const { constructor: _, ...methods } = Object.getOwnPropertyDescriptors(Guarded.prototype)
  const made: object = Object.create(base, methods)
  GUARDED.set(base, made)
  return made
}

/** Puts the guard on a socket whose handshake has just ended, before it has delivered an octet. */
export function guardSocket(socket: Duplex, options: GuardOptions): Guard {
  const base: Duplex = Object.getPrototypeOf(socket)
  const guard: Guard = {
    walk: new PacketWalk(options.limits),
    options,
    base,
    connection: null,
    isCorked: false,
    keptPieces: [],
    written: 0,
    keptBytes: 0,
    keptLast: null,
    holding: null,
    hasHeld: false,
    isLeaving: false,
    isCut: false,
  }
  Object.setPrototypeOf(socket, guardedFrom(base))
  const guarded = socket as Guarded // by the line above
  guarded[GUARD] = guard
  return guard
}

/**
 * Closes the descriptor below a guarded socket whose client has been decided against. Everything else that closing is
 * (TLS, streams, whoever listens for `close`) waits for {@link bury}. False when there is nothing to put off.
 */
export function cut(socket: Duplex, wire: Duplex): boolean {
  if (!(GUARD in socket) || socket.destroyed) return false
  const guard = (socket as Guarded)[GUARD] // by the line above
  if (guard.connection === null || guard.connection.refused === null) return false
  guard.isCut = true
  wire.destroy()
  return true
}

/** The rest of what {@link cut} began. */
export function bury(socket: Duplex): void {
  if (GUARD in socket) (socket as Guarded)[GUARD].isCut = false // by the condition before it
  socket.destroy()
}

/** Reads nothing more of a guarded socket for so long from now, ms. */
export function holdReading(socket: Duplex, ms: number): void {
  if (!(GUARD in socket)) return
  const guard = (socket as Guarded)[GUARD] // by the line above
  if (guard.holding !== null) clearTimeout(guard.holding)
  else if (!guard.hasHeld) socket.once('close', () => clearTimeout(guard.holding ?? undefined))
  guard.hasHeld = true
  guard.holding = setTimeout(
    () => {
      guard.holding = null
      socket.emit('readable')
    },
    Math.min(ms, LONGEST_MS),
  )
}

/** True while nothing is read of it. */
export function isReadingHeld(socket: Duplex): boolean {
  return GUARD in socket && (socket as Guarded)[GUARD].holding !== null // by the condition before it
}

/**
 * Ends a guarded socket in peace: nothing more is written, what comes is not looked at, and it is destroyed when the
 * other side has closed as well or the time is over. `done` says which: a client without a network answers nothing.
 */
export function farewell(
  socket: Duplex,
  { ms, done }: { readonly ms: number; done(wasAlive: boolean): void },
): void {
  if (!(GUARD in socket) || socket.destroyed) {
    done(false)
    return
  }
  const guarded = socket as Guarded // by the line above
  guarded[GUARD].isLeaving = true
  clearTimeout(guarded[GUARD].holding ?? undefined) // its answer counts, however fast it was before
  guarded[GUARD].holding = null
  let wasAlive = false
  const leave = () => {
    guarded[GUARD].isLeaving = false
    guarded.destroy()
  }
  const timer = setTimeout(leave, ms)
  guarded.once('end', () => {
    wasAlive = true
    leave()
  })
  guarded.once('close', () => {
    clearTimeout(timer)
    done(wasAlive)
  })
  guarded.end()
  setImmediate(() => guarded.resume()) // by then nobody else reads it
}
