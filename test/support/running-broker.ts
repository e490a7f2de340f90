/** A broker with everything in it, in this process, for a plane of the test. */
import { EventEmitter, once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { connect, type MqttClient } from 'mqtt'
import type { Test } from 'tap'
import { openLog } from '#shared/log'
import { Lifecycle } from '#shared/service'
import { readConfig } from '../../broker/config.ts'
import { type RunningBroker, startBroker } from '../../broker/start.ts'
import type { RunningEnrollment } from './enrollment.ts'

export interface TestBrokerProcess extends RunningBroker {
  /** Every line that was logged. */
  readonly logged: readonly string[]
  /** Resolves when a line with this text has been logged or will be; fails after 10 s. */
  says(text: string): Promise<void>
  stop(): Promise<void>
}

/** Starts a broker with these options and stops it when the test ends. @throws MusterError as `startBroker` */
export async function runBroker(
  t: Test,
  args: readonly string[],
  clock: { offsetMs: number } = { offsetMs: 0 },
): Promise<TestBrokerProcess> {
  const logged: string[] = []
  const lines = new EventEmitter()
  const says = async (text: string) => {
    const signal = AbortSignal.timeout(10_000)
    while (!logged.some((line) => line.includes(text))) await once(lines, 'line', { signal })
  }
  const log = openLog(
    'broker',
    'debug',
    new PassThrough().on('data', (line) => {
      logged.push(String(line))
      lines.emit('line')
    }),
  )
  const lifecycle = new Lifecycle(log)
  t.teardown(() => lifecycle.stop())
  const deps = { log, lifecycle, now: () => Date.now() + clock.offsetMs, random: Math.random }
  try {
    const broker = await startBroker(readConfig(args), deps)
    return { ...broker, logged, says, stop: () => lifecycle.stop() }
  } catch (error) {
    await lifecycle.stop()
    throw error
  }
}

/** Options for a broker of this plane with an invitation, on any port. */
export async function invitedBroker(service: RunningEnrollment, id: string): Promise<string[]> {
  const data = join(service.data, id)
  mkdirSync(data, { recursive: true })
  const invitation = join(data, 'invitation.json')
  writeFileSync(invitation, JSON.stringify(await service.admin.inviteBroker({ id })))
  return ['--data', data, '--invite', invitation, '--port', '0']
}

/** What a client presents: `TestDevice` of enrollment, or any pair. */
export interface ClientPair {
  readonly id: string
  readonly certificate: string
  readonly key: string
}

/**
 * Connects with mqtt.js as the device; rejects with the return code when it is refused, or when the socket closes
 * before an answer (connectAsync waits for ever then). Never reconnects by itself.
 */
export async function connectAs(
  service: RunningEnrollment,
  broker: { readonly port: number },
  { id, certificate, key }: ClientPair,
  options: { clean?: boolean } = {},
): Promise<MqttClient> {
  const client = connect({
    protocol: 'mqtts',
    host: 'localhost',
    port: broker.port,
    ca: service.root,
    cert: certificate + service.deps.authority.device.pem,
    key,
    clientId: id,
    reconnectPeriod: 0,
    connectTimeout: 10_000,
    ...options,
  })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const closed = () => reject(new Error('closed without an answer'))
  client.on('error', reject) // stays: a later error must not end the test process
  client.once('close', closed)
  client.once('connect', () => resolve())
  try {
    await promise
    client.off('close', closed)
    return client
  } catch (error) {
    client.end(true)
    throw error
  }
}

/** Resolves when the client has lost its connection; fails after 10 s. */
export async function disconnected(client: MqttClient): Promise<void> {
  if (!client.connected) return
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const timer = setTimeout(() => reject(new Error('still connected')), 10_000)
  client.once('close', () => resolve())
  await promise.finally(() => clearTimeout(timer))
}
