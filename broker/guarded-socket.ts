import type { Duplex } from 'node:stream'
import { TLSSocket } from 'node:tls'
import { type PacketLimits, PacketWalk } from './packet-walk.ts'
import type { Connection } from './sessions.ts'

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
  connection: Connection | null
  isCorked: boolean
  /** Set while nothing is read, so that the client's own buffers fill and it has to wait. */
  holding: NodeJS.Timeout | null
  /** Said goodbye to: whoever destroys it now does not mean it, but for a decision against the client. */
  isLeaving: boolean
}

const GUARD = Symbol('guard')

/**
 * A TLS socket that judges packets by their headers as they arrive, writes once in a turn of the event loop, and
 * never makes a writer wait: a reader that is too slow loses its socket, not everybody else their time. It is put
 * on a socket that exists already; a stream in between would cost a tenth of the throughput.
 */
class Guarded extends TLSSocket {
  declare [GUARD]: Guard

  override push(chunk: unknown, encoding?: BufferEncoding): boolean {
    const { walk, options } = this[GUARD]
    const violation = chunk instanceof Uint8Array ? walk.take(chunk) : null
    if (violation === null) return super.push(chunk, encoding)
    options.onViolation(violation)
    this.destroy()
    return false
  }

  /** Nothing while reading is held; what arrives stays in buffers that have an end. */
  override read(size?: number): unknown {
    return this[GUARD].holding === null ? super.read(size) : null
  }

  /** Always true. After the decision against the client nothing more is written to it. */
  override write(...written: unknown[]): boolean {
    const { connection, options, isLeaving } = this[GUARD]
    if (isLeaving || (connection !== null && connection.refused !== null)) return true
    super.write(...(written as Parameters<TLSSocket['write']>)) // the overloads of Writable.write, passed on as they came
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
    super.cork()
    setImmediate(() => {
      guard.isCorked = false
      if (guard.connection !== null && guard.connection.refused !== null) this.destroy()
      else super.uncork()
    })
  }

  /** Nothing: what was corked is written at the end of the turn. */
  override uncork(): void {}

  override destroy(error?: Error): this {
    const { connection, isLeaving } = this[GUARD]
    return isLeaving && (connection === null || connection.refused === null) ? this : super.destroy(error)
  }
}

/** Puts the guard on a socket whose handshake has just ended, before it has delivered an octet. */
export function guardSocket(socket: TLSSocket, options: GuardOptions): Guard {
  const guard: Guard = {
    walk: new PacketWalk(options.limits),
    options,
    connection: null,
    isCorked: false,
    holding: null,
    isLeaving: false,
  }
  Object.setPrototypeOf(socket, Guarded.prototype)
  const guarded = socket as Guarded // by the line above
  guarded[GUARD] = guard
  return guard
}

/** Reads nothing more of a guarded socket for so long from now, ms. */
export function holdReading(socket: Duplex, ms: number): void {
  if (!(GUARD in socket)) return
  const guard = (socket as Guarded)[GUARD] // by the line above
  if (guard.holding === null) socket.once('close', () => clearTimeout(guard.holding ?? undefined))
  else clearTimeout(guard.holding)
  guard.holding = setTimeout(() => {
    guard.holding = null
    socket.emit('readable')
  }, ms)
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
