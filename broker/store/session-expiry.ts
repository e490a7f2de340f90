import type { Log } from '#shared/log'
import type { Allowance } from '#shared/policy/caps'
import type { Session } from './session-rows.ts'
import type { SessionStore } from './session-store.ts'

/** A session that is over because its client has not come back, and what went with it. */
export interface Expired {
  readonly session: Session
  readonly allowance: Allowance
  /** Messages that waited for the client. */
  readonly messages: number
}

export interface ExpiryDeps {
  readonly store: SessionStore
  /** A client is registered under this id. */
  isConnected(clientId: string): boolean
  /** False while the broker takes nobody in; by default it does. */
  isServing?(): boolean
  /** Told when it is on disk. */
  expired(over: Expired): void
  readonly log: Log
}

/** From one look at all sessions to the next, ms. */
const EVERY_MS = 60_000
/** Sessions that are looked at in one turn of the event loop. */
const SLICE = 200
/** Rows that may go in one commit; of a session that has more it is the only one. */
const ROWS = 100
/** Nobody is away who is just connecting: its client is registered some turns after its session was taken up, ms. */
const LEAST_MS = 60_000
const SECOND_MS = 1_000

/**
 * Ends, now and then, the sessions whose clients have been away for longer than they may: MQTT 3.1.1 section 4.1 lets a
 * server do that. Returns how to stop.
 */
export function keepExpiring(deps: ExpiryDeps, everyMs = EVERY_MS): () => void {
  deps.store.sessions.absences.standStill() // before, the broker may have waited long for its first state
  const stopping = new AbortController()
  let timer: NodeJS.Timeout
  const begin = () => {
    timer = setTimeout(() => void expireSessions(deps, stopping.signal).finally(later), everyMs)
    timer.unref()
  }
  const later = () => {
    if (!stopping.signal.aborted) begin()
  }
  begin()
  return () => {
    stopping.abort()
    clearTimeout(timer)
  }
}

/** Looks at every session once, some in each turn of the event loop. Ends early when the disk takes no writes. */
export async function expireSessions(deps: ExpiryDeps, signal?: AbortSignal): Promise<void> {
  const { store, log } = deps
  const { absences } = store.sessions
  if (deps.isServing?.() === false) return absences.standStill() // nobody could come, and what may have changed is not known
  absences.keepLife()
  const rest = store.sessions.each() // it lives: whoever is added comes later, whoever is gone does not
  try {
    while (signal?.aborted !== true) {
      const { ending, isOver } = lookAtSome(deps, rest)
      await Promise.all(ending)
      if (isOver) return
      await new Promise(setImmediate)
    }
  } catch (error) {
    log.error({ err: error }, 'cannot end the sessions of clients that stay away')
  }
}

/** As many as are looked at in one turn. A session is looked at and taken away in one step, so that nobody takes it up between. */
function lookAtSome(deps: ExpiryDeps, rest: Iterator<Session>): { ending: Promise<void>[]; isOver: boolean } {
  const { store } = deps
  const ending: Promise<void>[] = []
  for (let [looked, rows] = [0, 0]; looked < SLICE && rows < ROWS; looked++) {
    const { value: session, done } = rest.next()
    if (done === true) return { ending, isOver: true }
    const over = judge(deps, session)
    if (over === null) continue
    rows += 1 + over.messages + store.sessions.subscriptions.of(over.session.client).length
    ending.push(end(deps, over))
  }
  return { ending, isOver: false }
}

/** What has to end, or null: it may stay. */
function judge({ store, isConnected }: ExpiryDeps, session: Session): Expired | null {
  const { sessions } = store
  const { client } = session
  if (isConnected(client)) {
    sessions.absences.here(client)
    return null
  }
  const awayMs = sessions.absences.awayMs(client)
  if (awayMs < LEAST_MS) return null
  const allowance = store.allowances.surely(session)
  if (allowance === null) return null
  const limitMs = allowance.caps.sessionExpirySeconds * SECOND_MS || Number.POSITIVE_INFINITY // 0: it stays for ever
  if (awayMs > limitMs) return { session, allowance, messages: sessions.queues.waiting(client) }
  sessions.absences.note(client, limitMs)
  return null
}

async function end({ store, expired }: ExpiryDeps, over: Expired): Promise<void> {
  await store.discard(over.session.client)
  store.sessions.expired++
  expired(over)
}
