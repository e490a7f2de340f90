import type { Command } from 'commander'
import { DEFAULT_PORT_BASE } from '#shared/layout'
import type { Context } from '../context.ts'
import { EXIT } from '../exit-codes.ts'
import { positiveInteger } from '../number.ts'
import { runPlane } from '../run-plane.ts'
import { stopSignals } from '../stop-signals.ts'
import type { Invocation, Use } from '../verb.ts'
import {
  addBrokerOptions,
  addKeepingOptions,
  type BrokerOptions,
  brokerArguments,
  type KeepingOptions,
  keepingArguments,
} from './programs.ts'

interface UpOptions extends KeepingOptions, BrokerOptions {
  readonly portBase: string
  readonly demo: boolean
  readonly devices: string
  readonly host: readonly string[]
  readonly listen: string
  readonly trustDomain?: string
  readonly metrics?: boolean
}

/** Devices of the demo unless --devices says otherwise. */
const DEMO_DEVICES = 200

const collect = (value: string, before: readonly string[]) => [...before, value]

/** @param bin path of `bin/muster.mjs`, which the children are started with */
export function addUpCommand(program: Command, use: Use, bin: string): void {
  const base = String(DEFAULT_PORT_BASE)
  const up = program
    .command('up')
    .description('run everything: CA, enrollment, broker, and at the first start the demo')
    .option('--port-base <n>', 'broker at n+883, enrollment n+443, admin API n+444, CRL n+80', base)
    .option(
      '--host <name>',
      'name or address that clients use, repeatable; localhost always is one',
      collect,
      [],
    )
    .option('--listen <address>', 'address to listen on', '127.0.0.1')
    .option('--trust-domain <name>', 'name in every certificate, fixed at the first start')
    .option('--metrics', 'serve metrics on this machine: enrollment at n+90, broker at n+91')
    .option('--no-demo', 'no simulated devices at the first start')
    .option('--devices <n>', 'how many the demo has', String(DEMO_DEVICES))
  addBrokerOptions(addKeepingOptions(up)).action(
    use((context, invocation: Invocation<UpOptions>) => runUp(context, invocation.options, bin)),
  )
}

async function runUp(context: Context, options: UpOptions, bin: string) {
  const demoDevices = options.demo ? positiveInteger('--devices', options.devices) : 0
  const portBase = positiveInteger('--port-base', options.portBase)
  const keeping = keepingArguments(options)
  const delivering = brokerArguments(options)
  const signals = stopSignals(context.now)
  try {
    const { websocketPort } = options
    const webSocketPort = /^\d{1,5}$/.test(websocketPort ?? '') ? Number(websocketPort) : undefined // else the broker says it
    await runPlane(context, {
      ...options,
      webSocketPort,
      bin,
      portBase,
      demoDevices,
      keeping,
      delivering,
      signals,
    })
  } finally {
    signals.release()
  }
  return EXIT.ok
}
