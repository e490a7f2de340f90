import type { Scope } from '#shared/feed'
import { identityOf } from '../mqtt/mqtt-client.ts'
import { isDue, type Marks, type OrderReader, type PurgeOrder } from '../replica/purge-rows.ts'
import { SLICE } from './purge.ts'
import type { SessionStore } from './session-store.ts'

/** As few orders on single devices are carried out without a look at everything that is stored. */
const FEW = 64

/** The devices that orders after the marks are on, when they are few and by name; null otherwise. */
export function named(orders: OrderReader, from: Marks): string[] | null {
  const scopes: Scope[] | null = orders.due(from, FEW)
  if (!scopes?.every(({ kind }) => kind === 'device')) return null
  return [...new Set(scopes.map(({ id }) => id))]
}

/** One of whom something is stored, with the orders on it that are not carried out. */
export interface Ordered {
  readonly identity: string
  readonly due: readonly PurgeOrder[]
}

/**
 * Those of whom anything is stored and whom an order after the marks is on; some in each turn of the event loop.
 * @throws the signal's reason when it gives up
 */
export async function findOrdered(of: {
  readonly store: SessionStore
  readonly orders: OrderReader
  readonly from: Marks
  readonly signal: AbortSignal
}): Promise<Ordered[]> {
  const { orders, from, signal } = of
  const ordered: Ordered[] = []
  const all = named(orders, from) ?? identitiesOf(of.store)
  for (let at = 0; at < all.length; at += SLICE) {
    for (const identity of all.slice(at, at + SLICE)) {
      const due = orders.on(identity).filter((order) => isDue(order, from))
      if (due.length > 0) ordered.push({ identity, due })
    }
    await new Promise(setImmediate)
    signal.throwIfAborted()
  }
  return ordered
}

function identitiesOf({ sessions, wills, retained }: SessionStore): string[] {
  const ofSessions = sessions.all().map(({ identity }) => identity)
  const ofWills = [...wills.all()].map(({ clientId = '' }) => identityOf(clientId))
  return [...new Set([...ofSessions, ...ofWills, ...retained.owners()])]
}
