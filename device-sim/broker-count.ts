import type { AdminClient } from '#shared/admin-client'
import { type Clock, untilSeen } from './clock.ts'

/** Brokers report their sockets every few seconds. */
const DEADLINE_MS = 15_000
const LOOK_EVERY_MS = 100

/** What all brokers together count, as of their last reports. */
async function count(admin: AdminClient): Promise<{ sessions: number; heard: string }> {
  const brokers = (await admin.listBrokers()).filter(({ state }) => state === 'up')
  const sessions = brokers.reduce((sum, broker) => sum + broker.sessions, 0)
  return { sessions, heard: brokers.map(({ id, lastHeardAt }) => `${id}@${lastHeardAt}`).join() }
}

/** Open sockets, counted by the brokers after this call; the last count when they report no more. */
export async function countSessions(admin: AdminClient, clock: Clock): Promise<number> {
  let last = await count(admin)
  let reports = 0
  await untilSeen(
    async () => {
      const now = await count(admin)
      if (now.heard !== last.heard) reports += 1
      last = now
      return reports >= 2 ? true : null // the first may have been on its way when this call began
    },
    { ms: DEADLINE_MS, everyMs: LOOK_EVERY_MS, clock },
  )
  return last.sessions
}

/** Waits until the brokers count `expected` sockets; resolves with the count that there is at the deadline. */
export async function awaitSessions(
  admin: AdminClient,
  options: { expected: number; clock: Clock },
): Promise<number> {
  let sessions = -1
  await untilSeen(
    async () => {
      sessions = (await count(admin)).sessions
      return sessions === options.expected ? sessions : null
    },
    { ms: DEADLINE_MS, everyMs: LOOK_EVERY_MS, clock: options.clock },
  )
  return sessions
}
