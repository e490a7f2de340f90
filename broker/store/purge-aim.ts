import type { Scope } from '#shared/feed'
import { identityOf } from '../mqtt/mqtt-client.ts'
import { isDue, type Marks, type OrderReader } from '../replica/purge-rows.ts'
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

/**
 * Those of whom anything is stored and whom an order after the marks is on, and of them those whose retained messages
 * are to be forgotten as well; some in each turn of the event loop.
 * @throws the signal's reason when it gives up
 */
export async function findOrdered(of: {
  readonly store: SessionStore
  readonly orders: OrderReader
  readonly from: Marks
  readonly signal: AbortSignal
}): Promise<{ ordered: string[]; identities: Set<string> }> {
  const { orders, from, signal } = of
  const ordered: string[] = []
  const identities = new Set<string>()
  const all = named(orders, from) ?? identitiesOf(of.store)
  for (let at = 0; at < all.length; at += SLICE) {
    for (const identity of all.slice(at, at + SLICE)) {
      const due = orders.on(identity).filter((order) => isDue(order, from))
      if (due.length > 0) ordered.push(identity)
      if (due.some(({ retained }) => retained)) identities.add(identity)
    }
    await new Promise(setImmediate)
    signal.throwIfAborted()
  }
  return { ordered, identities }
}

function identitiesOf({ sessions, wills, retained }: SessionStore): string[] {
  const ofSessions = sessions.all().map(({ identity }) => identity)
  const ofWills = [...wills.all()].map(({ clientId = '' }) => identityOf(clientId))
  return [...new Set([...ofSessions, ...ofWills, ...retained.owners()])]
}
