import type { AdminClient } from '#shared/admin-client'
import { type Clock, untilSeen } from './clock.ts'

/** Brokers report their sockets every few seconds. */
const DEADLINE_MS = 15_000
/** A broker that has something to say does so within this, ms. */
const REPORT_MS = 6_000
/** Closed sockets are in a report within this, ms. */
const SETTLE_MS = 2_000
const LOOK_EVERY_MS = 50

/** What all brokers together count, as of their last reports. */
async function count(admin: AdminClient): Promise<{ sessions: number; heard: string }> {
  const brokers = (await admin.listBrokers()).filter(({ state }) => state === 'up')
  const sessions = brokers.reduce((sum, broker) => sum + broker.sessions, 0)
  return { sessions, heard: brokers.map(({ id, lastHeardAt }) => `${id}@${lastHeardAt}`).join() }
}

/**
 * Open sockets, counted by the brokers at a time when nobody comes and goes: two reports in a row that agree.
 * @param knock makes a broker report at once, by coming and going; without it reports are seconds apart
 */
export async function countSessions(
  admin: AdminClient,
  { knock, clock }: { knock: () => Promise<void>; clock: Clock },
): Promise<number> {
  let last = await count(admin)
  const agreed = async () => {
    const before = last
    await knock()
    const isNewer = async () => {
      last = await count(admin)
      return last.heard === before.heard ? null : true
    }
    const heard = await untilSeen(isNewer, { ms: REPORT_MS, everyMs: LOOK_EVERY_MS, clock })
    return heard && last.sessions === before.sessions ? true : null
  }
  await untilSeen(agreed, { ms: DEADLINE_MS, everyMs: LOOK_EVERY_MS, clock })
  return last.sessions
}

/** Waits a moment until the brokers count `expected` sockets; resolves with what they count then. */
export async function awaitSessions(
  admin: AdminClient,
  options: { expected: number; knock: () => Promise<void>; clock: Clock },
): Promise<number> {
  const isExpected = async () => ((await count(admin)).sessions === options.expected ? true : null)
  const limit = { ms: SETTLE_MS, everyMs: LOOK_EVERY_MS, clock: options.clock }
  const seen = await untilSeen(isExpected, limit)
  return seen ? options.expected : await countSessions(admin, options)
}
