/** What storms are made of: a broker and fleets in processes of their own, and bystanders who must not notice. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { isMusterError } from '#shared/errors'
import { enrollService } from './broker-kills.ts'
import type { RunningEnrollment } from './enrollment.ts'
import { MUSTER } from './plane.ts'
import { connectAs } from './running-broker.ts'
import type { StormOrder, StormSent } from './storm-process.ts'

const FLEET = fileURLToPath(new URL('./storm-process.ts', import.meta.url))
const LAG_PROBE = fileURLToPath(new URL('./lag-probe.ts', import.meta.url))
/** Longest wait for anything, ms; only a hang meets it. */
const HANG_MS = 1_500_000
/** Devices that go on publishing while others are held, or hammer. */
export const GOOD = 20
const ASK_EVERY_MS = 100
/** How long a message that was acknowledged may be on its way to a live subscriber, ms; what comes later is lost. */
const ARRIVAL_MS = 30_000

export interface BrokerChild {
  readonly process: ChildProcess
  readonly url: string
  readonly port: number
  stop(): Promise<void>
}

export interface Bystanders {
  readonly process: ChildProcess
  /** They stop; says how many messages were acknowledged, and how many of those have not arrived. */
  end(): Promise<{ readonly published: number; readonly lost: number }>
}

/** {@link GOOD} devices in a batch of their own that publish with QoS 1 from now on, and a service that reads them. */
export async function openBystanders(
  t: Test,
  service: RunningEnrollment,
  broker: Pick<BrokerChild, 'url' | 'port'>,
): Promise<Bystanders> {
  await ensureBatch(service, 'good')
  const good = await startFleet(t, service, {
    ...{ batch: 'good', prefix: 'good', count: GOOD },
    broker: broker.url,
  })
  const reader = await connectAs(service, broker, await enrollService(service, `backend-${Date.now()}`))
  const arrived = new Map<string, Set<string>>()
  reader.on('message', (topic, payload) => {
    const seen = arrived.get(topic) ?? new Set()
    arrived.set(topic, seen.add(String(payload)))
  })
  await reader.subscribeAsync('devices/+/telemetry', { qos: 1 })
  good.send('publish')
  const isOf = (topic: string) => topic.startsWith('devices/good-')
  await until(async () => [...arrived.keys()].filter(isOf).length === GOOD)
  return {
    process: good,
    async end() {
      const { sent } = await ask<StormSent>(good, 'drain')
      const missing = () =>
        Object.entries(sent).reduce(
          (total, [device, made]) => total + made - (arrived.get(`devices/${device}/telemetry`)?.size ?? 0),
          0,
        )
      const deadline = Date.now() + ARRIVAL_MS
      while (missing() > 0 && Date.now() < deadline) await pause()
      await reader.endAsync(true)
      return { published: Object.values(sent).reduce((total, made) => total + made, 0), lost: missing() }
    },
  }
}

/** It may be there from an earlier run. */
export async function ensureBatch({ admin }: RunningEnrollment, id: string): Promise<void> {
  await admin.createBatch({ id }).catch((error: unknown) => {
    if (!isMusterError(error, 'conflict')) throw error
  })
}

export async function startBroker(t: Test, args: readonly string[]): Promise<BrokerChild> {
  const child = fork(MUSTER, ['broker', ...args, '--log-level', 'error'], {
    execArgv: ['--import', LAG_PROBE],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const gone = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await gone
  })
  const { details } = await heard<{ type: string; details: { broker: string } }>(child, 'ready')
  const stop = async () => {
    child.kill('SIGTERM')
    await gone
  }
  return { process: child, url: details.broker, port: Number(new URL(details.broker).port), stop }
}

export async function startFleet(
  t: Test,
  service: RunningEnrollment,
  of: { batch: string; prefix: string; count: number; broker: string },
): Promise<ChildProcess> {
  const { token } = await service.admin.createToken({ batch: of.batch, uses: of.count })
  const order: StormOrder = {
    ...{ directory: join(service.data, of.prefix), prefix: of.prefix, count: of.count, token },
    ...{ broker: of.broker, enrollment: service.whereabouts.enrollment, caFile: service.whereabouts.caFile },
  }
  return startProcess(t, { program: FLEET, args: [JSON.stringify(order)] })
}

/** A program that says "ready"; it ends with the test. */
export async function startProcess(
  t: Test,
  { program, args = [] }: { program: string; args?: readonly string[] },
): Promise<ChildProcess> {
  const child = fork(program, [...args])
  const gone = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await gone
  })
  await heard(child, 'ready')
  return child
}

/** The next message of this type; fails when the process ends before it. */
export async function heard<Message extends { readonly type: string }>(
  child: ChildProcess,
  type: Message['type'],
): Promise<Message> {
  const { promise, resolve, reject } = Promise.withResolvers<Message>()
  const timer = setTimeout(() => reject(new Error(`no "${type}" in time`)), HANG_MS)
  const look = (message: { readonly type?: string }) => {
    if (message.type === type) resolve(message as Message) // by its type
  }
  const ended = (code: number | null) => reject(new Error(`ended with ${code} before "${type}"`))
  child.on('message', look)
  child.once('exit', ended)
  try {
    return await promise
  } finally {
    clearTimeout(timer)
    child.off('message', look)
    child.off('exit', ended)
  }
}

export function ask<Message extends { readonly type: string }>(
  child: ChildProcess,
  question: 'lag' | 'count' | 'drain' | 'closings',
): Promise<Message> {
  const answer = heard<Message>(child, question === 'drain' ? 'sent' : question)
  child.send(question)
  return answer
}

const pause = () => new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS))

/** Asks again until there is an answer that is neither false nor null. */
export async function until<Answer>(question: () => Promise<Answer | false | null>): Promise<Answer> {
  const deadline = Date.now() + HANG_MS
  for (;;) {
    const answer = await question()
    if (answer !== false && answer !== null) return answer
    if (Date.now() > deadline) throw new Error(`never came true: ${question}`)
    await pause()
  }
}
