import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { writeSecretFile } from '#shared/files'
import { type Layout, layout, metricsPorts, ports, type Ready } from '#shared/layout'
import { lockDirectory } from '#shared/sqlite'
import { howEnded } from './child.ts'
import type { Context } from './context.ts'
import { checkPorts, type PortUse, prepareDirectory } from './preflight.ts'
import type { StopSignals } from './stop-signals.ts'
import { Supervisor } from './supervisor.ts'
import { brokerLines, enrollmentLines, nextLines, population } from './up-lines.ts'

/** The fleet of the demo; synthetic, so that `muster demo clear` forgets it. */
const DEMO_FLEET = 'demo'

export interface PlaneOptions {
  /** Path of `bin/muster.mjs`. */
  readonly bin: string
  readonly portBase: number
  readonly host: readonly string[]
  readonly listen: string
  readonly trustDomain?: string
  /** Serve metrics. */
  readonly metrics?: boolean
  /** Among the arguments of the broker. */
  readonly webSocketPort?: number | undefined
  /** Further arguments of enrollment. */
  readonly keeping: readonly string[]
  /** Further arguments of the broker. */
  readonly delivering: readonly string[]
  /** 0 for no demo. */
  readonly demoDevices: number
  readonly signals: StopSignals
}

/**
 * Runs enrollment and broker on one data directory until the first signal, and stops them in reverse.
 * @throws MusterError directory_unusable, directory_in_use, port_taken, config_invalid, and what a child fails with
 */
export async function runPlane(context: Context, options: PlaneOptions): Promise<void> {
  const files = layout(context.options.data)
  prepareDirectory(files.root)
  const lock = lockDirectory(files.lock)
  try {
    rmSync(files.ready, { force: true }) // of one that was killed
    await checkPorts(options.portBase, options.listen, furtherPorts(options))
    await supervise(context, { ...options, files })
  } finally {
    lock.release()
  }
}

/** Those that are off until asked for. What is no port, its program says. */
function furtherPorts({ metrics, portBase, listen, webSocketPort }: PlaneOptions): PortUse[] {
  const scraped = Object.entries(metrics ? metricsPorts(portBase) : {})
  const uses = scraped.map(([name, port]) => ({
    use: `the metrics of the ${name}`,
    port,
    address: '127.0.0.1',
  }))
  if (webSocketPort === undefined || webSocketPort > 65_535) return uses
  return [...uses, { use: 'MQTT over WebSocket', port: webSocketPort, address: listen }]
}

type Started = PlaneOptions & { readonly files: Layout }

async function supervise(context: Context, options: Started): Promise<void> {
  const { files, signals, bin } = options
  const supervisor = new Supervisor({ bin, now: context.now, say: (text) => context.say(text) })
  signals.kill.addEventListener('abort', () => supervisor.kill())
  try {
    // A signal ends the wait for a start that hangs; the children are stopped below.
    await Promise.race([serve(context, { ...options, supervisor }), aborted(signals.stop)])
    await aborted(signals.stop)
  } finally {
    rmSync(files.ready, { force: true })
    if (signals.stop.aborted) context.say('Stopping ...')
    await supervisor.stop()
  }
}

/** 1 enrollment, 2 broker, 3 ready.json, 4 the demo or what is there, 5 what to do next. */
async function serve(context: Context, options: Started & { supervisor: Supervisor }): Promise<void> {
  const { files, demoDevices, supervisor } = options
  const isFirst = !existsSync(brokerCertificate(files))
  prepareDirectory(logsOf(files))
  await supervisor.start(enrollmentSpec(options))
  context.say(enrollmentLines(context, { files, portBase: options.portBase }))
  await startBroker(context, options)
  context.say(brokerLines(context, options))
  const ready = readyDocument(options)
  writeSecretFile(files.ready, `${JSON.stringify(ready, null, 2)}\n`)
  if (context.options.json) context.answer(ready, () => '')
  const example = isFirst && demoDevices > 0 ? await runDemo(context, options) : null
  if (!isFirst) context.say(population(await context.plane().status()))
  context.say(nextLines(context.options.data, example))
}

/**
 * Plays the life of a fleet against the running plane; it shows its own progress.
 * @returns a device that is refused now, for the reader to ask about; null when there is none
 */
async function runDemo(
  context: Context,
  options: Started & { supervisor: Supervisor },
): Promise<string | null> {
  const { files, demoDevices, signals, supervisor } = options
  context.say(`Demo fleet: ${demoDevices} simulated devices   (--no-demo to skip)`)
  const scenario = ['sim', 'run', 'lifecycle', '--data', files.root, '--fleet', DEMO_FLEET]
  const ended = await supervisor.runOnce('demo', [...scenario, '--devices', String(demoDevices), '--keep'])
  if (ended.status !== 0 && !signals.stop.aborted) {
    context.say(`The demo ${howEnded(ended)}; the plane goes on without it.`)
  }
  const { devices } = await context.plane().listDevices({ fleet: DEMO_FLEET, limit: 1_000 })
  return devices.find(({ expiresAt }) => expiresAt === null)?.id ?? null // revoked: it has no live certificate
}

/** A broker without a credential is invited: the invitation is a 0600 file for as long as the start takes. */
async function startBroker(context: Context, options: Started & { supervisor: Supervisor }): Promise<void> {
  const { files, supervisor } = options
  const spec = {
    ...serviceSpec('broker', options),
    args: ['broker', ...serviceArgs(options), ...options.delivering, ...metricsArgs('broker', options)],
  }
  if (existsSync(brokerCertificate(files))) return supervisor.start(spec)
  prepareDirectory(files.broker)
  const invitationFile = join(files.broker, 'invitation.json')
  const invitation = await context.plane().inviteBroker({ id: 'broker' })
  writeSecretFile(invitationFile, JSON.stringify(invitation))
  try {
    await supervisor.start({ ...spec, firstArgs: ['--invite', invitationFile] })
  } finally {
    rmSync(invitationFile, { force: true })
  }
}

function enrollmentSpec(options: Started) {
  const { trustDomain, keeping } = options
  const names = trustDomain === undefined ? [] : ['--trust-domain', trustDomain]
  return {
    ...serviceSpec('enrollment', options),
    args: [
      'enrollment',
      ...serviceArgs(options),
      ...names,
      ...keeping,
      ...metricsArgs('enrollment', options),
    ],
  }
}

function serviceSpec(name: string, { files }: Started) {
  return { name, logFile: join(logsOf(files), `${name}.log`) }
}

function serviceArgs({ files, portBase, listen, host }: Started): string[] {
  const hosts = host.flatMap((name) => ['--host', name])
  return ['--data', files.root, '--port-base', String(portBase), '--listen', listen, ...hosts]
}

function metricsArgs(of: 'broker' | 'enrollment', { metrics, portBase }: Started): string[] {
  return metrics === true ? ['--metrics-port', String(metricsPorts(portBase)[of])] : []
}

/** There since the first start that was complete. */
function brokerCertificate(files: Layout): string {
  return join(files.broker, 'broker.crt')
}

function logsOf(files: Layout): string {
  return join(files.root, 'logs')
}

function readyDocument({ files, portBase, host }: Started): Ready {
  const at = ports(portBase)
  const [name = 'localhost'] = host
  return {
    schemaVersion: 1,
    pid: process.pid,
    broker: `mqtts://${name}:${at.broker}`,
    enrollment: `https://${name}:${at.enrollment}`,
    admin: `https://${name}:${at.admin}`,
    http: `http://${name}:${at.http}`,
    caFile: files.rootCertificate,
    operatorProfile: files.operatorProfile,
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  const { promise, resolve } = Promise.withResolvers<void>()
  signal.addEventListener('abort', () => resolve(), { once: true })
  await promise
}
