import { EventEmitter, once } from 'node:events'
import t from 'tap'
import { MusterError } from '#shared/errors'
import type { Clock } from '../../device-sim/clock.ts'
import { DeviceTime } from '../../device-sim/device-time.ts'
import type { LinkOptions, OpenLink } from '../../device-sim/mqtt-link.ts'
import { RenewalHints } from '../../device-sim/renewal-hints.ts'

const DAY_MS = 86_400_000

interface DeviceTimeSource {
  /** What time it is when the device is told, ms. */
  readonly is: number
  /** How many times nobody answers before. */
  readonly silent: number
}

function askOf({ is, silent }: DeviceTimeSource, { time, asked }: { time: DeviceTime; asked: number[] }) {
  return async () => {
    asked.push(time.now())
    if (asked.length <= silent) throw new MusterError('unreachable', 'down')
    time.hear(is, { host: '', validity: { from: 0, to: Number.MAX_SAFE_INTEGER } })
  }
}

/** A clock that jumps over every wait, a link that says what it is told, and what was rotated when. */
function stage(options: { fails?: number; startsAt?: number; time?: DeviceTimeSource } = {}) {
  let now = options.startsAt ?? 0
  const rotated: string[] = []
  const events = new EventEmitter()
  const subscribed: string[] = []
  const clock: Clock = {
    now: () => now,
    wait: async (ms, signal) => {
      await Promise.resolve()
      if (!signal?.aborted) now += ms
    },
  }
  const time = new DeviceTime({ clock, certificates: () => '' })
  const asked: number[] = []
  const hints = new RenewalHints({
    clock,
    ...(options.time
      ? { time: { of: () => ({ roots: '', time }), ask: askOf(options.time, { time, asked }) } }
      : {}),
    random: () => 0.5,
    rotate: async (device) => {
      rotated.push(`${device} at ${time.now()}`)
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
  return { hints, connect, say, hint, heard, rotated, subscribed, other, asked }
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

for (const [name, startsAt] of [
  ['1970', 0],
  ['ten years ahead', 3_660 * DAY_MS],
  ['a day behind', 9 * DAY_MS],
] as const) {
  t.test(`a device whose clock is at ${name} asks for the time, and rotates in its window`, async (t) => {
    const time = { is: 10 * DAY_MS, silent: 0 }
    const { connect, say, hint, heard, rotated, asked } = stage({ startsAt, time })
    await connect()
    const first = heard()
    say(hint(20 * DAY_MS, 22 * DAY_MS))
    await first
    t.strictSame(rotated, [`d1 at ${21 * DAY_MS}`])
    t.equal(asked.length, 1, 'once since it was started')
  })
}

t.test('a device that nobody tells the time goes by its clock, and asks again every hour', async (t) => {
  const time = { is: 19 * DAY_MS, silent: 3 }
  const { connect, say, hint, heard, rotated, asked } = stage({ startsAt: 10 * DAY_MS, time })
  await connect()
  const first = heard()
  say(hint(20 * DAY_MS, 22 * DAY_MS))
  await first
  t.strictSame(rotated, [`d1 at ${21 * DAY_MS}`])
  t.strictSame(
    asked.map((at) => at - 10 * DAY_MS),
    [0, 3_600_000, 7_200_000, 10_800_000],
  )
})
