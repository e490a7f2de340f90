import { Readable } from 'node:stream'
import { Type } from 'typebox'
import type { EventMessage } from '#shared/api'
import { ALIVE_EVERY_MS } from '#shared/feed'
import type { Deps } from '../deps.ts'
import { type Route, route } from './routes.ts'

/** Events read and written at once. */
const SLICE = 500
const TIMELINE = 50

const EventQuery = Type.Object({
  /** The sequence of the last event that is known. */
  after: Type.Optional(Type.Integer({ minimum: 0 })),
  /** That it is of. */
  epoch: Type.Optional(Type.String({ maxLength: 64 })),
  device: Type.Optional(Type.String({ maxLength: 128 })),
  /** `false` ends at the newest event. */
  follow: Type.Optional(Type.Boolean()),
})
const TimelineQuery = Type.Object({
  before: Type.Optional(Type.Integer({ minimum: 1 })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
})

/** What happened, from a cursor on: NDJSON, a line a message. */
export const EVENT_ROUTES: readonly Route[] = [
  route({
    method: 'GET',
    path: '/v1/events',
    role: 'operator',
    query: EventQuery,
    handle: async ({ deps, query, signal }) =>
      Readable.from(lines(deps, { after: 0, follow: true, ...query, signal: signal() }), {
        highWaterMark: 1,
      }),
  }),
  route({
    method: 'GET',
    path: '/v1/devices/:id/timeline',
    role: 'operator',
    query: TimelineQuery,
    handle: async ({ deps, param, query }) => {
      const device = param('id')
      const { limit = TIMELINE, ...page } = query
      return { device, events: await deps.registry.timelineOf(device, { ...page, limit }) }
    },
  }),
]

interface Reader {
  readonly after: number
  readonly epoch?: string
  readonly device?: string
  readonly follow: boolean
  readonly signal: AbortSignal
}

async function* lines(deps: Deps, reader: Reader): AsyncGenerator<string> {
  for await (const slice of messages(deps, reader)) {
    yield slice.map((message) => `${JSON.stringify(message)}\n`).join('')
  }
}

/** Every event after the cursor, each once and in order; a gap is said before it is stepped over. */
async function* messages(deps: Deps, reader: Reader): AsyncGenerator<EventMessage[]> {
  const { registry, now } = deps
  const { device, follow, signal } = reader
  const bells = [deps.changed.listen(), deps.reported.listen()]
  try {
    const begin = await registry.eventBounds()
    const isOtherEpoch = reader.epoch !== undefined && reader.epoch !== begin.epoch
    let after = isOtherEpoch ? 0 : Math.min(reader.after, begin.newest)
    let isOver = isOtherEpoch || reader.after > begin.newest
    while (!signal.aborted) {
      const { epoch, oldest, newest } = await registry.eventBounds()
      if (isOver || after < oldest - 1) {
        yield [{ type: 'gap', epoch, after: reader.after, oldest }]
        after = Math.max(after, oldest - 1)
        isOver = false
      }
      const events = await registry.eventsAfter(after, {
        limit: SLICE,
        ...(device === undefined ? {} : { device }),
      })
      if (events.length > 0) {
        const [first] = events
        if (device === undefined && first?.sequence !== after + 1) continue // pruned meanwhile: the gap is said first
        yield events.map((event) => ({ type: 'event', ...event }))
        after = events.at(-1)?.sequence ?? after
        if (events.length === SLICE) continue
      }
      after = Math.max(after, newest)
      yield [{ type: 'alive', epoch, sequence: after, at: now() }]
      if (!follow) return
      await rung(bells, signal)
    }
  } finally {
    for (const bell of bells) bell.stop()
  }
}

/** Resolves when one of the bells rings, with the signal, or after the time in which the stream says that it is alive. */
async function rung(
  bells: readonly ReturnType<Deps['changed']['listen']>[],
  signal: AbortSignal,
): Promise<void> {
  const turn = new AbortController()
  const either = AbortSignal.any([signal, turn.signal])
  await Promise.race(bells.map((bell) => bell.wait({ ms: ALIVE_EVERY_MS, signal: either })))
  turn.abort()
}
