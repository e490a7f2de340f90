import { readdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import t from 'tap'
import { startBrokerProcess } from '../support/broker-process.ts'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { connectAs, invitedBroker } from '../support/running-broker.ts'

const CONNECTIONS = 10_000
/** Addresses that they come from: one alone would not get so many places. */
const ADDRESSES = 20
/** Connections that are opened before the next ones: the queue of the listening socket is 511. */
const AT_A_TIME = 200
/** Times that a device comes and goes after them; only a leak needs more than a few. */
const VISITS = 100

t.setTimeout(600_000) // only a hang meets it

t.test('10 000 strangers who say nothing are gone soon, and a device connects all the while', async (t) => {
  const service = await startEnrollment(t)
  const broker = await startBrokerProcess(t, await invitedBroker(service, 'broker-1'))
  const lamp = await enrollDevice(service, { id: 'lamp' })
  const descriptors = () => readdirSync(`/proc/${broker.process.pid}/fd`).length
  const visit = async () => (await connectAs(service, broker, lamp)).endAsync()
  await visit()
  const baseline = descriptors()
  let closed = 0
  const all = Promise.withResolvers<void>()
  const knock = (n: number) =>
    new Promise<void>((resolve) => {
      const localAddress = `127.0.2.${1 + (n % ADDRESSES)}`
      const socket: Socket = connect({ host: '127.0.0.1', port: broker.port, localAddress })
      socket.on('error', () => {})
      socket.once('connect', () => resolve())
      socket.once('close', () => {
        if (++closed === CONNECTIONS) all.resolve()
        resolve()
      })
      socket.resume()
    })
  const began = Date.now()
  let most = 0
  for (let n = 0; n < CONNECTIONS; n += AT_A_TIME) {
    await Promise.all(Array.from({ length: AT_A_TIME }, (_, i) => knock(n + i)))
    most = Math.max(most, descriptors())
  }
  const opened = Date.now()
  const client = await connectAs(service, broker, lamp)
  const connected = Date.now()
  await all.promise
  const gone = Date.now()
  await client.endAsync()
  // The broker has turned to whatever was closed before when it answers a device that comes afterwards.
  for (let n = 0; n < VISITS && descriptors() > baseline; n++) await visit()
  t.comment(
    `opened in ${opened - began} ms, at most ${most} descriptors (${baseline} before); a device connected in ${connected - opened} ms; all gone ${gone - opened} ms after the last (goal: 15000)`,
  )
  t.equal(closed, CONNECTIONS)
  t.ok(descriptors() <= baseline)
})
