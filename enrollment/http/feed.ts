import { Readable } from 'node:stream'
import { Type } from 'typebox'
import {
  ALIVE_EVERY_MS,
  type Cursor,
  FAULT_LENGTH,
  type FeedMessage,
  ReportBatch,
  type ReportReply,
} from '#shared/feed'
import { attendClones } from '../clones.ts'
import type { Deps } from '../deps.ts'
import { brokerOf } from './brokers.ts'
import { type Route, route } from './routes.ts'

/** From the first sighting of a certificate until its predecessors are superseded, ms. */
export const OVERLAP_MS = 24 * 3_600_000
/** Changes read and written at once. */
const SLICE = 500

const FeedQuery = Type.Object({
  epoch: Type.Optional(Type.String({ maxLength: 64 })),
  position: Type.Optional(Type.Integer({ minimum: 0 })),
  fault: Type.Optional(Type.String({ pattern: '^[ -~]+$', maxLength: FAULT_LENGTH })),
})

/** The change stream and the reports, for brokers. */
export const FEED_ROUTES: readonly Route[] = [
  route({
    method: 'GET',
    path: '/v1/feed',
    role: 'broker',
    query: FeedQuery,
    handle: async ({ deps, caller, query, signal }) => {
      const { epoch, position, fault } = query
      deps.brokerFaults.heard(brokerOf(caller).id, fault)
      const from = epoch !== undefined && position !== undefined ? { epoch, position } : null
      // Readable.from asks for the next slice only when the socket has taken the last one.
      return Readable.from(lines(deps, { broker: brokerOf(caller), from, signal: signal() }), {
        highWaterMark: 1,
      })
    },
  }),
  route({
    method: 'POST',
    path: '/v1/feed/reports',
    role: 'broker',
    body: ReportBatch,
    handle: async ({ deps, caller, body }): Promise<ReportReply> => {
      const { id } = brokerOf(caller)
      await deps.registry.applyReports(id, body, OVERLAP_MS, deps.now())
      deps.brokerFaults.reported(id, body)
      deps.reported.ring()
      await attend(deps)
      return { sequence: body.sequence }
    },
  }),
]

/** The reports are taken, whatever comes of what they say. */
async function attend(deps: Deps): Promise<void> {
  try {
    await attendClones(deps)
  } catch (error) {
    deps.log.error({ err: error }, 'clone alarms were not attended to')
  }
}

interface Reader {
  readonly broker: { readonly id: string; readonly fingerprint: string }
  readonly from: Cursor | null
  readonly signal: AbortSignal
}

async function* lines(deps: Deps, reader: Reader): AsyncGenerator<string> {
  await deps.registry.streamOf(reader.broker.id, true, deps.now())
  try {
    for await (const slice of messages(deps, reader)) {
      if (!(await isWelcome(deps, reader.broker))) return
      yield slice.map((message) => `${JSON.stringify(message)}\n`).join('')
    }
  } catch (error) {
    deps.log.error({ broker: reader.broker.id, err: error }, 'feed broke off')
    throw error
  } finally {
    await deps.registry.streamOf(reader.broker.id, false, deps.now())
  }
}

/** The state as a snapshot, unless the reader is on this epoch, not ahead of it, and not further back than the log; then every change, as it happens. */
async function* messages(deps: Deps, { from, signal, broker }: Reader): AsyncGenerator<FeedMessage[]> {
  const { registry } = deps
  const commits = deps.changed.listen()
  try {
    const cursor = await registry.cursor()
    const oldest = await registry.oldestPosition()
    const canResume =
      from !== null &&
      from.epoch === cursor.epoch &&
      from.position <= cursor.position &&
      from.position >= oldest
    deps.log.info({ broker: broker.id, from, canResume }, 'feed opened')
    let position = canResume ? from.position : yield* snapshot(deps)
    const { epoch } = cursor
    while (!signal.aborted) {
      const changes = await registry.changesAfter(position, SLICE)
      if (changes.length > 0) {
        if (changes[0]?.position !== position + 1) {
          position = yield* snapshot(deps) // what comes next has been pruned meanwhile
          continue
        }
        yield changes.map((change) => ({ type: 'change', ...change }))
        position = changes.at(-1)?.position ?? position
        continue
      }
      yield [{ type: 'alive', epoch, position, at: deps.now() }]
      await commits.wait({ ms: ALIVE_EVERY_MS, signal })
    }
  } finally {
    commits.stop()
  }
}

/** Asked before every slice: the certificate has not expired, nor has the broker been forgotten since, however far behind it is. */
async function isWelcome(deps: Deps, broker: Reader['broker']): Promise<boolean> {
  const certificate = await deps.registry.findInfrastructure(broker.fingerprint)
  return certificate !== null && certificate.revokedAt === null && deps.now() <= certificate.notAfter
}

/** Returns the position from which the changes go on. */
async function* snapshot(deps: Deps): AsyncGenerator<FeedMessage[], number> {
  const at = deps.now()
  const { cursor, changes } = await deps.registry.snapshot(at)
  const { epoch, position } = cursor
  yield [{ type: 'snapshot', epoch, position }]
  for await (const slice of changes) {
    yield slice.map((change) => ({ type: 'change', position, at, change }))
  }
  yield [{ type: 'snapshot-end', epoch, position }]
  return position
}
