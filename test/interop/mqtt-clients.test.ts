/** MQTT clients that nobody here wrote: mosquitto's, Eclipse Paho for Python and for C, and mqtt.js. */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { MqttClient } from 'mqtt'
import t, { type Test } from 'tap'
import { enrollDevice, newRequest, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { connectAs, invitedBroker, runBroker } from '../support/running-broker.ts'

const SOURCES = join(import.meta.dirname, 'clients')
/** Longest wait for a word of a client before it counts as hung, ms. */
const DEADLINE_MS = 30_000

type Qos = 0 | 1 | 2

/** What a client is started with. */
interface Seat {
  readonly port: number
  /** Holds `root.pem`, `device.pem` and `device.key`. */
  readonly directory: string
  readonly id: string
  readonly qos: Qos
}

interface Client {
  readonly name: string
  /** Subscribes to the device's commands in a session that outlives the connection, and prints `got <payload> at <qos>`. */
  listen(seat: Seat): readonly string[]
  /** Sends one message; left out by a client that echoes each command that it gets. */
  publish?(seat: Seat, payload: string): readonly string[]
}

function mosquitto({ port, directory, id, qos }: Seat): string[] {
  const tls = ['--cafile', 'root.pem', '--cert', 'device.pem', '--key', 'device.key']
  const files = tls.map((value) => (value.startsWith('--') ? value : join(directory, value)))
  return ['-h', 'localhost', '-p', `${port}`, ...files, '-i', id, '-q', `${qos}`]
}

const words = ({ port, directory, id, qos }: Seat) => [`${port}`, directory, id, `${qos}`]

function clients(paho: string): Client[] {
  return [
    {
      name: 'mosquitto',
      listen: (seat) => [
        ...['stdbuf', '-oL', 'mosquitto_sub', ...mosquitto(seat), '-c'],
        ...['-F', 'got %p at %q', '-t', `devices/${seat.id}/commands/#`],
      ],
      publish: (seat, payload) => [
        ...['mosquitto_pub', ...mosquitto(seat)],
        ...['-t', `devices/${seat.id}/telemetry`, '-m', payload],
      ],
    },
    {
      name: 'paho-python',
      // Debian's own interpreter is the one that Debian's packages are for.
      listen: (seat) => ['/usr/bin/python3', join(SOURCES, 'paho-device.py'), ...words(seat)],
    },
    { name: 'paho-c', listen: (seat) => [paho, ...words(seat)] },
    {
      name: 'mqtt-js',
      listen: (seat) => [process.execPath, join(SOURCES, 'mqtt-js-device.mjs'), ...words(seat)],
    },
  ]
}

interface Running {
  /** Resolves when the client has printed the text, after what it had printed at the last call. */
  says(text: string): Promise<void>
  kill(): Promise<void>
}

function start(t: Test, command: readonly string[]): Running {
  const [program = '', ...args] = command
  const child: ChildProcess = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = once(child, 'close')
  let output = ''
  let heard = 0
  child.stdout?.on('data', (chunk) => {
    output += chunk
  })
  child.stderr?.on('data', (chunk) => {
    output += chunk
  })
  const kill = async () => {
    child.kill('SIGKILL')
    await ended
  }
  t.teardown(kill)
  return {
    kill,
    async says(text) {
      const deadline = AbortSignal.timeout(DEADLINE_MS)
      const closed = ended.then(() => deadline)
      while (!output.includes(text, heard)) {
        if (deadline.aborted || child.exitCode !== null)
          throw new Error(`"${text}" was not said, but: ${output}`)
        const more = once(child.stdout ?? child, 'data', { signal: deadline }).catch(() => {})
        await Promise.race([more, closed])
      }
      heard = output.indexOf(text, heard) + text.length
    },
  }
}

interface Telemetry {
  readonly topic: string
  readonly payload: string
  readonly qos: number
}

/** The next message of any topic; rejects when the signal aborts. */
function nextMessage(client: MqttClient, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    client.once('message', () => resolve())
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}

/** The back end: a service that sends commands and hears the whole fleet. */
class BackEnd {
  readonly client: MqttClient
  readonly heard: Telemetry[] = []

  constructor(client: MqttClient) {
    this.client = client
    client.on('message', (topic, payload, { qos }) =>
      this.heard.push({ topic, payload: payload.toString(), qos }),
    )
  }

  command(id: string, payload: string, options: { qos: Qos; retain?: boolean }): Promise<unknown> {
    return this.client.publishAsync(`devices/${id}/commands/light`, payload, options)
  }

  async hears(wanted: Telemetry): Promise<void> {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const isWanted = (it: Telemetry) =>
      it.topic === wanted.topic && it.payload === wanted.payload && it.qos === wanted.qos
    while (!this.heard.some(isWanted)) await nextMessage(this.client, signal)
  }
}

async function openBackEnd(
  t: Test,
  { service, broker, id }: { service: RunningEnrollment; broker: { port: number }; id: string },
): Promise<BackEnd> {
  const { key, csr } = await newRequest()
  const { certificate } = await service.admin.createService({ id, csr })
  const client = await connectAs(service, broker, { id, certificate, key })
  t.teardown(() => client.endAsync(true))
  const backEnd = new BackEnd(client)
  await client.subscribeAsync('devices/+/telemetry', { qos: 2 })
  return backEnd
}

async function seatOf(service: RunningEnrollment, of: { id: string; port: number; qos: Qos }): Promise<Seat> {
  const directory = join(service.data, 'clients', of.id)
  mkdirSync(directory, { recursive: true })
  const device = await enrollDevice(service, { id: of.id })
  writeFileSync(join(directory, 'root.pem'), service.root)
  writeFileSync(join(directory, 'device.pem'), device.certificate + service.deps.authority.device.pem)
  writeFileSync(join(directory, 'device.key'), device.key, { mode: 0o600 })
  return { ...of, directory }
}

/** The broker is in this process: it must not stand still meanwhile. */
async function runToEnd([program = '', ...args]: readonly string[]): Promise<void> {
  await promisify(execFile)(program, args, { timeout: DEADLINE_MS })
}

t.test('clients that nobody here wrote', async (t) => {
  const service = await startEnrollment(t)
  const args = await invitedBroker(service, 'broker-1')
  const broker = await runBroker(t, args)
  const { port } = broker
  const backEnd = await openBackEnd(t, { service, broker, id: 'backend' })
  const paho = join(service.data, 'paho-device')
  execFileSync('gcc', ['-o', paho, join(SOURCES, 'paho-device.c'), '-lpaho-mqtt3cs'])
  const running = new Map<string, Running>()

  for (const client of clients(paho)) {
    for (const qos of [0, 1, 2] as const) {
      await t.test(`${client.name} is commanded, answers and comes back at QoS ${qos}`, async (t) => {
        const id = `${client.name}-${qos}`
        const seat = await seatOf(service, { id, port, qos })
        const telemetry = `devices/${id}/telemetry`
        const listening = start(t, client.listen(seat))
        await backEnd.command(id, 'retained', { qos, retain: true })
        await listening.says(`got retained at ${qos}`) // it is subscribed
        await backEnd.command(id, 'live', { qos })
        await listening.says(`got live at ${qos}`)
        if (client.publish === undefined) await backEnd.hears({ topic: telemetry, payload: 'live', qos })
        await listening.kill()
        if (client.publish !== undefined) {
          await runToEnd(client.publish(seat, 'alone'))
          await backEnd.hears({ topic: telemetry, payload: 'alone', qos })
        }

        // mosquitto_pub began a clean session, which discarded the one of mosquitto_sub [MQTT-3.1.2-6].
        const keepsSession = qos > 0 && client.publish === undefined
        if (keepsSession) await backEnd.command(id, 'while away', { qos })
        const again = start(t, client.listen(seat))
        if (keepsSession) await again.says(`got while away at ${qos}`)
        else await again.says(`got retained at ${qos}`)
        t.pass('it has what it was sent')
        await again.kill()
      })
    }
  }

  t.test('a client that lost its broker comes back to it', async (t) => {
    // mosquitto_sub ends when it loses its broker, as the README shows.
    const lasting = clients(paho).filter(({ name }) => name !== 'mosquitto')
    const seats = await Promise.all(
      lasting.map(async (client) => ({
        client,
        seat: await seatOf(service, { id: `${client.name}-back`, port, qos: 1 }),
      })),
    )
    for (const { client, seat } of seats) {
      const listening = start(t, client.listen(seat))
      running.set(seat.id, listening)
      await backEnd.command(seat.id, 'before', { qos: 1, retain: true })
      await listening.says('got before at 1')
    }
    await broker.stop()
    const after = await runBroker(t, [...args.filter((_, at) => at < args.length - 1), `${port}`])
    t.equal(after.port, port)
    const returned = await openBackEnd(t, { service, broker: after, id: 'backend-2' })
    for (const { seat } of seats) {
      await returned.command(seat.id, 'after', { qos: 1, retain: true })
      await running.get(seat.id)?.says('got after at 1')
      t.pass(`${seat.id} came back by itself`)
    }
  })
})
