import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { brokerNodeOptions } from '#shared/broker-node'
import { freePort } from './cfssl.ts'
import type { BenchContext } from './harness.ts'
import { MUSTER, newDirectory, type Plane } from './plane.ts'
import { ready, type Server, startServer } from './processes.ts'

export interface BrokerUnderTest {
  readonly server: Server
  readonly port: number
  readonly directory: string
  /** From the start of the process until it serves, ms: with an empty directory that includes the first snapshot. */
  readonly readyMs: number
  readonly command: string
}

/**
 * `muster broker` with an invitation of the plane, over its real change stream; or again in a directory of before.
 * `options` are Node's, `settings` its own.
 */
export async function startBroker(
  context: BenchContext,
  of: { plane: Plane; directory?: string; options?: readonly string[]; settings?: readonly string[] },
): Promise<BrokerUnderTest> {
  const { plane, options = [], settings = [] } = of
  const directory = of.directory ?? newDirectory(context)
  const invitation = join(directory, 'invitation.json')
  if (of.directory === undefined) {
    writeFileSync(invitation, JSON.stringify(await plane.admin.inviteBroker()), { mode: 0o600 })
  }
  const port = await freePort()
  const given = brokerNodeOptions({ bin: MUSTER, execArgv: options, environment: process.env }) // as `muster up` does
  const command = [
    ...[process.execPath, ...given, ...options],
    ...[MUSTER, 'broker', '--data', directory, '--invite', invitation],
    ...['--port', String(port), '--log-level', 'warn', ...settings],
  ]
  const begun = performance.now()
  const server = startServer(command, { context, cwd: directory, ipc: true })
  await ready(server, 'muster broker')
  const readyMs = performance.now() - begun
  return {
    server,
    port,
    directory,
    readyMs,
    command: ['muster broker --data DIR --invite FILE --log-level warn', ...settings].join(' '),
  }
}
