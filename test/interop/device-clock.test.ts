/** Devices whose clock was never set, is years ahead, or jumps: real processes under libfaketime, on a plane whose clock is right. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { underClock } from '../support/fake-clock.ts'
import type { FleetOrder, Look, Seen } from '../support/fleet-process.ts'
import { scratch } from '../support/muster.ts'
import { adminOf, startPlane } from '../support/plane.ts'

const FLEET = fileURLToPath(new URL('../support/fleet-process.ts', import.meta.url))
const PATIENCE_MS = 120_000
const DEVICES = 3

/** A process with devices, whose wall clock can be set; timers go on as on a real machine. */
async function startFleet(t: Test, of: { order: FleetOrder; clockFile: string }) {
  const fleet = fork(FLEET, [JSON.stringify(of.order)], {
    env: underClock({ file: of.clockFile, timers: 'kernel' }),
    execArgv: [],
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  t.teardown(() => fleet.kill('SIGKILL'))
  const signal = AbortSignal.timeout(PATIENCE_MS)
  const ended = once(fleet, 'exit', { signal }).then(() => ['ended'])
  const [message] = await Promise.race([once(fleet, 'message', { signal }), ended])
  if (message?.type !== 'ready') throw new Error('the devices did not start')
  return fleet
}

let looks = 0

/** Resolves when every device is connected, and has another certificate than these. */
async function seen(fleet: ChildProcess, renewed: readonly string[] = []): Promise<string[]> {
  const look: Look = { number: ++looks, version: 1, renewed }
  fleet.send(look)
  for (;;) {
    const signal = AbortSignal.timeout(PATIENCE_MS)
    const [answer] = (await once(fleet, 'message', { signal })) as [Seen] // what fleet-process.ts sends
    if (answer.number === look.number) return answer.devices.map(({ serial }) => serial)
  }
}

async function stop(fleet: ChildProcess): Promise<void> {
  const gone = once(fleet, 'exit')
  fleet.kill('SIGKILL')
  await gone
}

t.test('devices with any clock enroll, connect, renew when they are asked to, and not before', async (t) => {
  const base = scratch(t)
  const plane = await startPlane(t)
  const admin = adminOf(t, plane)
  const { token } = await admin.createToken({ batch: 'lab', uses: DEVICES })
  const order: FleetOrder = {
    ...{ directory: join(base, 'devices'), count: DEVICES, token },
    ...{ broker: plane.ready.broker, enrollment: plane.ready.enrollment, caFile: plane.ready.caFile },
  }
  const clockFile = join(base, 'clock')
  const setClock = (at: string) => {
    writeFileSync(`${clockFile}.new`, `${at}\n`)
    renameSync(`${clockFile}.new`, clockFile) // no process reads half of it
  }
  const devices = Array.from({ length: DEVICES }, (_, index) => `pump-000${index + 1}`)
  let serials: string[] = []
  let rotations = 0
  for (const [startsAt, jumpsTo] of [
    ['@1970-01-02 00:00:00', '+3650d'],
    ['+3650d', '@1970-01-02 00:00:00'],
    ['-400d', '+20d'],
    ['@1970-01-02 00:00:00', '-1d'],
  ] as const) {
    setClock(startsAt)
    const fleet = await startFleet(t, { order, clockFile })
    const before = await seen(fleet)
    if (serials.length > 0) t.strictSame(before, serials, `${startsAt}: nobody renews for a clock`)
    setClock(jumpsTo)
    const rotation = await admin.beginRotation({ overMs: 0, devices })
    serials = await seen(fleet, before)
    rotations++
    t.equal(new Set([...before, ...serials]).size, 2 * DEVICES, `${startsAt}, ${jumpsTo}: all have renewed`)
    t.equal((await admin.showRotation(rotation.id)).gone, 0)
    await stop(fleet)
  }
  for (const id of devices) {
    const { certificates } = await admin.showDevice(id)
    t.equal(certificates.length, 1 + rotations, 'as many certificates as they were asked to get')
  }
})
