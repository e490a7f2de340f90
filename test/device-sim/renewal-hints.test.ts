import { EventEmitter, once } from 'node:events'
import t from 'tap'
import type { LinkOptions, OpenLink } from '../../device-sim/mqtt-link.ts'
import { RenewalHints } from '../../device-sim/renewal-hints.ts'

const DAY_MS = 86_400_000

/** A clock that jumps over every wait, a link that says what it is told, and what was rotated when. */
function stage(options: { fails?: number } = {}) {
  let now = 0
  const rotated: string[] = []
  const events = new EventEmitter()
  const subscribed: string[] = []
  const hints = new RenewalHints({
    clock: {
      now: () => now,
      wait: async (ms, signal) => {
        await Promise.resolve()
        if (!signal?.aborted) now += ms
      },
    },
    random: () => 0.5,
    rotate: async (device) => {
      rotated.push(`${device} at ${now}`)
      if (rotated.length <= (options.fails ?? 0)) throw new Error('refused')
      events.emit('rotated')
    },
  })
  let link: LinkOptions | undefined
  const open: OpenLink = async (of) => {
    link = of
    return {
      resumed: false,
      closed: new Promise(() => {}),
      publish: async () => {},
      subscribe: async (filter) => void subscribed.push(filter),
      session: () => undefined,
      end: async () => {},
    }
  }
  const other: string[] = []
  const connect = () =>
    hints.hearing(open)({
      url: '',
      ca: '',
      clientId: 'd1',
      certificate: '',
      key: '',
      now: () => now,
      onMessage: (topic) => void other.push(topic),
    })
  const say = (payload: string, topic = 'devices/d1/muster/renewal') =>
    link?.onMessage?.(topic, Buffer.from(payload))
  const hint = (renewAfter: number, renewBefore: number, serial = 'a') =>
    JSON.stringify({ serial, renewAfter, renewBefore, notAfter: 90 * DAY_MS })
  const heard = () => once(events, 'rotated', { signal: AbortSignal.timeout(10_000) })
  return { hints, connect, say, hint, heard, rotated, subscribed, other }
}

t.test('a device rotates at a moment of its window, and once for one hint', async (t) => {
  const { connect, say, hint, heard, rotated, subscribed } = stage()
  await connect()
  t.strictSame(subscribed, ['devices/d1/muster/renewal'])
  const first = heard()
  say(hint(20 * DAY_MS, 22 * DAY_MS))
  say(hint(20 * DAY_MS, 22 * DAY_MS))
  await first
  t.strictSame(rotated, [`d1 at ${21 * DAY_MS}`])
})

t.test('a window that has been moved counts instead of the one before', async (t) => {
  const { connect, say, hint, heard, rotated } = stage()
  await connect()
  const moved = heard()
  say(hint(20 * DAY_MS, 22 * DAY_MS))
  say(hint(0, 0))
  await moved
  t.strictSame(rotated, ['d1 at 0'])
})

t.test('what is no hint is passed on, and rotates nobody', async (t) => {
  const { connect, say, hint, rotated, other } = stage()
  await connect()
  for (const payload of ['', '{', '[]', '{"serial":"a"}', hint(-1, 0)]) say(payload)
  say(hint(0, 0), 'devices/d1/commands')
  t.strictSame(rotated, [])
  t.equal(other.length, 6)
})

t.test('a rotation that fails is tried again by itself, later and later', async (t) => {
  const { connect, say, hint, heard, rotated } = stage({ fails: 8 })
  await connect()
  const done = heard()
  say(hint(0, 0))
  await done
  const minutes = [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5]
  t.strictSame(
    rotated,
    minutes.map((at) => `d1 at ${at * 60_000}`),
  )
})

t.test('a rotation that is never granted is given up when the certificate ends', async (t) => {
  const { connect, say, hint, rotated } = stage({ fails: Number.POSITIVE_INFINITY })
  await connect()
  const at = 90 * DAY_MS - 60_000
  say(hint(at, at))
  for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate)
  t.strictSame(rotated, [`d1 at ${at}`, `d1 at ${at + 30_000}`])
})

t.test('what is stopped rotates nobody', async (t) => {
  const { hints, connect, say, hint, rotated } = stage()
  await connect()
  hints.stop()
  say(hint(0, 0))
  t.strictSame(rotated, [])
})
