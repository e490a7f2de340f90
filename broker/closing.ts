import type { Duplex } from 'node:stream'
import { bury, cut } from './door/guarded-socket.ts'

/** What is closed: a socket, and the TCP socket below it where the two can be closed one after the other. */
export interface Closable {
  readonly socket: Duplex
  readonly wire?: Duplex | undefined
}

export interface ClosingOptions {
  /** ms, to measure a turn by. */
  now(): number
  /** As many are few: they are closed at once, and with everything that belongs to them. */
  readonly few: number
  /** Every descriptor is closed, or told to. */
  cutOff(): void
  /** What belonged to them is gone as well. */
  done(): void
}

/** What a turn of the event loop may take, so that it comes round for everybody else, ms. */
const TURN_MS = 10
/** Most descriptors of a turn: as much again follows at its end, when `close` is emitted. */
const CUT_IN_A_TURN = 256

/**
 * Closes sockets that have been decided against. Of many, all descriptors go first, for that takes tens of
 * microseconds each: TLS, MQTT client, listeners and reports take ten times as much, and can wait, because nothing passes
 * through a session from the decision on. Whatever throws on the way keeps no other socket open.
 */
export function closeSockets(closables: readonly Closable[], options: ClosingOptions): void {
  const { now, few, cutOff, done } = options
  if (closables.length <= few) {
    const over = () => {
      cutOff()
      done()
    }
    inTurns(closables, { now, work: ({ socket }) => share(few, () => socket.destroy()), over })
    return
  }
  const bodies: Duplex[] = []
  const close = ({ socket, wire }: Closable) => {
    if (wire === undefined || !cut(socket, wire)) return share(few, () => socket.destroy())
    bodies.push(socket)
    return 1 / CUT_IN_A_TURN
  }
  const clean = () => inTurns(bodies, { now, work: (socket) => share(few, () => bury(socket)), over: done })
  const over = () => {
    cutOff()
    // `close` of a descriptor is emitted at the end of a turn, which may be after the first of these two.
    setImmediate(() => setImmediate(clean))
  }
  inTurns(closables, { now, work: close, over })
}

function share(most: number, work: () => void): number {
  work()
  return 1 / most
}

interface Turns<T> {
  now(): number
  /** Returns how much of a turn it is, whatever the clock says. */
  work(item: T): number
  over(): void
}

/** Works through the items, as many in each turn of the event loop as fit in it; the first ones at once. */
function inTurns<T>(items: readonly T[], { now, work, over }: Turns<T>): void {
  const rest = items.values()
  const turn = () => {
    const until = now() + TURN_MS
    let [isOver, spent] = [false, 0]
    try {
      while (spent < 1 && !isOver && now() <= until) {
        const { value, done } = rest.next()
        isOver = done === true
        if (value !== undefined) spent += work(value)
      }
    } finally {
      if (isOver) over()
      else setImmediate(turn)
    }
  }
  turn()
}
