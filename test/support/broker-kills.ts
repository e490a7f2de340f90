/** `muster broker` under QoS 1 load, killed again and again: what was acknowledged, and what arrived. */
import { connect, type MqttClient } from 'mqtt'
import type { Test } from 'tap'
import { type BrokerProcess, startBrokerProcess } from './broker-process.ts'
import { enrollDevice, newRequest, type RunningEnrollment, startEnrollment } from './enrollment.ts'
import { type ClientPair, invitedBroker } from './running-broker.ts'

export interface Tally {
  /** Numbers whose PUBACK came. */
  readonly acknowledged: Set<number>
  readonly arrived: Set<number>
  /** Arrived again, which QoS 1 allows. */
  repeated: number
}

/** Messages that may be under way before their PUBACK. */
const WINDOW = 50

/** Kills the broker in the middle of its work, as often as told; every second time nobody is there to read. */
export async function killUnderLoad(t: Test, kills: number): Promise<Tally> {
  const service = await startEnrollment(t)
  const args = [...(await invitedBroker(service, 'broker-1')), '--limit', 'publishPerSecond=0']
  const lamp = await enrollDevice(service, { id: 'lamp' })
  const reader = await enrollService(service, 'backend')
  const tally: Tally = { acknowledged: new Set(), arrived: new Set(), repeated: 0 }
  let number = 0
  for (let round = 0; round <= kills; round++) {
    const broker = await startBrokerProcess(t, args)
    const open = (who: ClientPair) => openClient(service, broker, who)
    const isRead = round === 0 || round % 2 === 1
    const away = isRead ? await read(await open(reader), tally) : null
    // Another number of messages each time, so that the kill finds the broker at another point.
    const until = tally.acknowledged.size + 40 + ((round * 37) % 160)
    const writer = await open(lamp)
    const writing = Array.from({ length: WINDOW }, () =>
      write(writer, { tally, until, next: () => ++number }),
    )
    await Promise.race(writing)
    await broker.kill()
    await Promise.all([...writing, away])
    writer.end(true)
  }
  await drain(t, { service, args, reader, tally })
  return tally
}

/** Publishes one message after the other until enough are acknowledged, or the broker is gone. */
async function write(
  client: MqttClient,
  { tally, until, next }: { tally: Tally; until: number; next(): number },
): Promise<void> {
  while (tally.acknowledged.size < until) {
    const number = next()
    const isAcknowledged = await new Promise<boolean>((resolve) => {
      client.once('close', () => resolve(false))
      if (!client.connected) return resolve(false)
      client.publish('devices/lamp/up', `${number}`, { qos: 1 }, (error) => resolve(!error))
    })
    if (!isAcknowledged) return
    tally.acknowledged.add(number)
  }
}

/** Subscribes, and notes what comes; resolves when the connection has ended. */
async function read(client: MqttClient, tally: Tally): Promise<{ gone: Promise<void> }> {
  client.setMaxListeners(0)
  client.on('message', (_, payload) => {
    const number = Number(payload)
    if (tally.arrived.has(number)) tally.repeated++
    tally.arrived.add(number)
  })
  const gone = new Promise<void>((resolve) => client.once('close', () => resolve()))
  await client.subscribeAsync('devices/#', { qos: 1 })
  return { gone }
}

/** Reads until everything that was acknowledged has arrived; gives up when a long time nothing new has. */
async function drain(
  t: Test,
  {
    service,
    args,
    reader,
    tally,
  }: { service: RunningEnrollment; args: string[]; reader: ClientPair; tally: Tally },
): Promise<void> {
  const broker = await startBrokerProcess(t, args)
  const client = await openClient(service, broker, reader)
  await read(client, tally)
  const isMissing = () => [...tally.acknowledged].some((number) => !tally.arrived.has(number))
  for (let quiet = 0, before = -1; isMissing() && quiet < 100; before = tally.arrived.size) {
    await client.subscribeAsync('devices/nothing', { qos: 0 })
    quiet = tally.arrived.size === before ? quiet + 1 : 0
  }
  await client.endAsync(true)
  await broker.stop()
}

async function openClient(
  service: RunningEnrollment,
  broker: BrokerProcess,
  who: ClientPair,
): Promise<MqttClient> {
  const client = connect({
    protocol: 'mqtts',
    host: 'localhost',
    port: broker.port,
    ca: service.root,
    cert: who.certificate + service.deps.authority.device.pem,
    key: who.key,
    clientId: who.id,
    clean: false,
    reconnectPeriod: 0,
  })
  client.setMaxListeners(0)
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  client.on('error', reject) // stays: a later error must not end the test process
  client.once('connect', () => resolve())
  await promise
  return client
}

export async function enrollService(service: RunningEnrollment, id: string): Promise<ClientPair> {
  const { csr, key } = await newRequest(id)
  const { certificate } = await service.admin.createService({ id, csr })
  return { id, certificate, key }
}
